"""Code shared by all training nodes: settings, run, memory check, previews and panel."""
