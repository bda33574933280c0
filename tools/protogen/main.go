// Command protogen compiles the .proto files of package swarmpb and writes the
// Go code that protoc-gen-go and protoc-gen-go-grpc make of them. It needs no
// protoc: the compiler is a Go library, and every version is pinned in this
// module's go.mod.
//
//	protogen -in DIR -out DIR          write
//	protogen -in DIR -out DIR -check   fail when a file there is missing or differs
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

const module = "github.com/legion-swarm/legion/swarmpb"

func main() {
	in := flag.String("in", "", "folder of the .proto files")
	out := flag.String("out", "", "folder of the Go package")
	check := flag.Bool("check", false, "compare instead of writing")
	flag.Parse()
	if err := run(context.Background(), *in, *out, *check); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, in, out string, check bool) error {
	names, err := sources(in)
	if err != nil {
		return err
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{in}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return err
	}
	req := &pluginpb.CodeGeneratorRequest{FileToGenerate: names, ProtoFile: descriptors(files)}
	for _, tool := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
		if err := generate(ctx, tool, req, out, check); err != nil {
			return fmt.Errorf("%s: %w", tool, err)
		}
	}
	return nil
}

func sources(dir string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".proto" {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("no .proto file in %q", dir)
	}
	return names, err
}

// descriptors lists the files and all that they import, imports first.
func descriptors(files linker.Files) []*descriptorpb.FileDescriptorProto {
	var all []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var visit func(f protoreflect.FileDescriptor)
	visit = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		imports := f.Imports()
		for i := range imports.Len() {
			visit(imports.Get(i).FileDescriptor)
		}
		all = append(all, protoutil.ProtoFromFileDescriptor(f))
	}
	for _, f := range files {
		visit(f)
	}
	return all
}

func generate(ctx context.Context, tool string, req *pluginpb.CodeGeneratorRequest, out string, check bool) error {
	req.Parameter = proto.String("module=" + module)
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", tool)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(data), os.Stderr
	answer, err := cmd.Output()
	if err != nil {
		return err
	}
	resp := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(answer, resp); err != nil {
		return err
	}
	if resp.Error != nil {
		return errors.New(resp.GetError())
	}
	for _, f := range resp.File {
		path := filepath.Join(out, filepath.Base(f.GetName()))
		if err := put(path, []byte(f.GetContent()), check); err != nil {
			return err
		}
	}
	return nil
}

func put(path string, content []byte, check bool) error {
	if !check {
		return os.WriteFile(path, content, 0o644)
	}
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, content) {
		return fmt.Errorf("%s is out of date: run make generate", path)
	}
	return nil
}
