"""Results for people: terminal tables, model cards, and one offline HTML file about a run."""
