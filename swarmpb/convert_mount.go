package swarmpb

import (
	"encoding/json"
	"os"

	"github.com/moby/moby/api/types/mount"
)

func mountTypes() []mount.Type {
	return []mount.Type{mount.TypeBind, mount.TypeVolume, mount.TypeTmpfs, mount.TypeNamedPipe, mount.TypeCluster}
}

func consistencies() []mount.Consistency {
	return []mount.Consistency{"", mount.ConsistencyFull, mount.ConsistencyCached, mount.ConsistencyDelegated}
}

func newMount(m mount.Mount) *Mount {
	x := &Mount{
		Source: m.Source, Target: m.Target, Readonly: m.ReadOnly,
		Type:        numberOf[Mount_Type](mountTypes(), m.Type),
		Consistency: numberOf[Mount_Consistency](consistencies(), m.Consistency),
		BindOptions: some(m.BindOptions, func(b *mount.BindOptions) *Mount_BindOptions {
			return &Mount_BindOptions{
				Propagation:  numberOf[Mount_BindOptions_Propagation](mount.Propagations, b.Propagation),
				Nonrecursive: b.NonRecursive, Createmountpoint: b.CreateMountpoint,
				Readonlynonrecursive: b.ReadOnlyNonRecursive, Readonlyforcerecursive: b.ReadOnlyForceRecursive,
			}
		}),
		VolumeOptions: some(m.VolumeOptions, func(v *mount.VolumeOptions) *Mount_VolumeOptions {
			return &Mount_VolumeOptions{
				Nocopy: v.NoCopy, Labels: table(v.Labels), Subpath: v.Subpath,
				DriverConfig: some(v.DriverConfig, func(d *mount.Driver) *Driver {
					return &Driver{Name: d.Name, Options: table(d.Options)}
				}),
			}
		}),
		TmpfsOptions: some(m.TmpfsOptions, newTmpfs),
		ImageOptions: some(m.ImageOptions, func(i *mount.ImageOptions) *Mount_ImageOptions {
			return &Mount_ImageOptions{Subpath: i.Subpath}
		}),
		ClusterOptions: m.ClusterOptions != nil,
	}
	if m.Type == mount.TypeImage {
		x.Type = Mount_IMAGE
	}
	return x
}

func (x *Mount) api() mount.Mount {
	m := mount.Mount{
		Source: x.GetSource(), Target: x.GetTarget(), ReadOnly: x.GetReadonly(),
		Type:        nameOf(mountTypes(), x.GetType()),
		Consistency: nameOf(consistencies(), x.GetConsistency()),
		BindOptions: some(x.GetBindOptions(), func(b *Mount_BindOptions) *mount.BindOptions {
			return &mount.BindOptions{
				Propagation:  nameOf(mount.Propagations, b.GetPropagation()),
				NonRecursive: b.GetNonrecursive(), CreateMountpoint: b.GetCreatemountpoint(),
				ReadOnlyNonRecursive: b.GetReadonlynonrecursive(), ReadOnlyForceRecursive: b.GetReadonlyforcerecursive(),
			}
		}),
		VolumeOptions: some(x.GetVolumeOptions(), func(v *Mount_VolumeOptions) *mount.VolumeOptions {
			return &mount.VolumeOptions{
				NoCopy: v.GetNocopy(), Labels: table(v.GetLabels()), Subpath: v.GetSubpath(),
				DriverConfig: some(v.GetDriverConfig(), func(d *Driver) *mount.Driver {
					return &mount.Driver{Name: d.GetName(), Options: table(d.GetOptions())}
				}),
			}
		}),
		TmpfsOptions: some(x.GetTmpfsOptions(), (*Mount_TmpfsOptions).api),
		ImageOptions: some(x.GetImageOptions(), func(i *Mount_ImageOptions) *mount.ImageOptions {
			return &mount.ImageOptions{Subpath: i.GetSubpath()}
		}),
	}
	if x.GetClusterOptions() {
		m.ClusterOptions = &mount.ClusterOptions{}
	}
	if x.GetType() == Mount_IMAGE {
		m.Type = mount.TypeImage
	}
	return m
}

func newTmpfs(t *mount.TmpfsOptions) *Mount_TmpfsOptions {
	x := &Mount_TmpfsOptions{SizeBytes: t.SizeBytes, Mode: uint32(t.Mode)}
	if len(t.Options) > 0 {
		if b, err := json.Marshal(t.Options); err == nil {
			x.Options = string(b)
		}
	}
	return x
}

// api leaves out options that are not in Docker's form.
func (x *Mount_TmpfsOptions) api() *mount.TmpfsOptions {
	t := &mount.TmpfsOptions{SizeBytes: x.GetSizeBytes(), Mode: os.FileMode(x.GetMode())}
	if x.GetOptions() != "" {
		var options [][]string
		if json.Unmarshal([]byte(x.GetOptions()), &options) == nil {
			t.Options = list(options)
		}
	}
	return t
}
