"""The requirements of a study, computed without weights or data: shapes and memory."""
