"""What tests share: gateways, servers, peers, scales."""
