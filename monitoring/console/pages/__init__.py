"""The pages, one module each: what is here is found and served by itself (see `monitoring.console.shell`)."""
