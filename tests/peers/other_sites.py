"""What a browser sends to a listener of ours when another site's page asks it to."""

# As fields of a request: its host, and headers; PORT stands for the listener's.
OTHER_SITES = {
    "another name": {"host": "evil.example:PORT"},
    "a name that begins like ours": {"host": "127.0.0.1.evil.example:PORT"},
    "a name that ends like ours": {"host": "evillocalhost:PORT"},
    "localhost elsewhere": {"host": "localhost.evil.example:PORT"},
    "a user before the name": {"host": "localhost@evil.example:PORT"},
    "a port that is none": {"host": "localhost:x"},
    "another origin": {"headers": {"Origin": "http://evil.example"}},
    "an opaque origin": {"headers": {"Origin": "null"}},
    "an extension": {"headers": {"Origin": "chrome-extension://abcdef"}},
}
