import socket
import urllib.error
import urllib.request

print(socket.gethostname(), socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM))
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
client.sendall(b"over lo")
print(peer.recv(100))
for address in (("192.0.2.1", 80), ("169.254.169.254", 80)):
    try:
        socket.create_connection(address, timeout=1)
    except OSError as error:
        print(error)
try:
    socket.getaddrinfo("example.com", 80)
except OSError as error:
    print(error)
