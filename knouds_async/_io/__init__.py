"""The only place that awaits the network, sleeps, or reads clock and dice; it holds no rule of the domain."""
