"""Behind the `influence-ssl` command: encoders by name, rivals of the score, tables, the report."""
