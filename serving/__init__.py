"""What serves: the router (data plane), the engines, the control plane with its admin API, and the command line."""
