"""What a study will need, found out without weights or data: shapes and memory of every stage."""
