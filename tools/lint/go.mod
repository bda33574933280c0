// Module lint pins the static checks that `make check` runs, apart from the
// main module so that their requirements and Legion's do not meet.
module github.com/legion-swarm/legion/tools/lint

go 1.26.6

require (
	github.com/kisielk/errcheck v1.30.0
	github.com/polyfloyd/go-errorlint v1.8.0
	golang.org/x/tools v0.51.0
	honnef.co/go/tools v0.8.0
)

require (
	github.com/BurntSushi/toml v1.4.1-0.20240526193622-a339e1f7089c // indirect
	golang.org/x/exp/typeparams v0.0.0-20231108232855-2478ac86f678 // indirect
	golang.org/x/mod v0.41.0 // indirect
	golang.org/x/sync v0.23.0 // indirect
)
