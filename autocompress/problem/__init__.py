"""What the user gives: teacher, data, space and budgets."""
