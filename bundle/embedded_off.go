//go:build !bundle

package bundle

import "io/fs"

func embedded() fs.FS { return nil }
