"""One small file per task: seeded splits and an exact checker."""
