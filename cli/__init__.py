"""The command ``ownlet``, one thin file per subcommand."""
