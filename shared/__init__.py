"""The vocabulary that every other folder imports and that imports none of them."""
