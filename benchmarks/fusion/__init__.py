"""The fusion study: subjects trained separately and combined in one model in several ways."""
