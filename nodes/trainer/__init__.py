"""What all training nodes share: settings, the run, its memory, previews and panel."""
