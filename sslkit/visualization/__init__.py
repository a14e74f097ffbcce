"""Pictures of what a method does and of what a run learned; one file per kind of picture."""
