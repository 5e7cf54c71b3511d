"""What a student is worth: accuracy, batch-norm statistics, activation ranges and weight importance."""
