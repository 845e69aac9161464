"""The models people have, at their real sizes, untouched and accelerated."""
