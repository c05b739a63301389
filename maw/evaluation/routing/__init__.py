"""What routers do: depths compared, learnable headroom, attention maps."""
