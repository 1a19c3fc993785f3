"""Sessions and tasks; knows interfaces only."""
