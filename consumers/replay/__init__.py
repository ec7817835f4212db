"""Topics into files: read without a group, written nowhere but where the analyst said."""
