"""The cluster: other servers, requests between servers, the clients of this process, and emitters."""
