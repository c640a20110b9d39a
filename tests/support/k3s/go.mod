module k3s

go 1.21
