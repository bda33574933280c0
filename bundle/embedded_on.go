//go:build bundle

package bundle

import (
	"embed"
	"io/fs"
)

//go:embed embedded
var files embed.FS

func embedded() fs.FS {
	sub, err := fs.Sub(files, "embedded")
	if err != nil {
		return nil
	}
	return sub
}
