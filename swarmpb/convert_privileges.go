package swarmpb

import "github.com/moby/moby/api/types/swarm"

func seccompModes() []swarm.SeccompMode {
	return []swarm.SeccompMode{swarm.SeccompModeDefault, swarm.SeccompModeUnconfined, swarm.SeccompModeCustom}
}

func newPrivileges(p *swarm.Privileges) *Privileges {
	m := &Privileges{
		CredentialSpec: some(p.CredentialSpec, newCredentialSpec),
		SelinuxContext: some(p.SELinuxContext, func(c *swarm.SELinuxContext) *Privileges_SELinuxContext {
			return &Privileges_SELinuxContext{Disable: c.Disable, User: c.User, Role: c.Role, Type: c.Type, Level: c.Level}
		}),
		Seccomp: some(p.Seccomp, func(s *swarm.SeccompOpts) *Privileges_SeccompOpts {
			return &Privileges_SeccompOpts{
				Mode: numberOf[Privileges_SeccompOpts_SeccompMode](seccompModes(), s.Mode), Profile: list(s.Profile),
			}
		}),
		NoNewPrivileges: p.NoNewPrivileges,
	}
	if p.AppArmor != nil {
		m.Apparmor = &Privileges_AppArmorOpts{}
		if p.AppArmor.Mode == swarm.AppArmorModeDisabled {
			m.Apparmor.Mode = Privileges_AppArmorOpts_DISABLED
		}
	}
	return m
}

func (x *Privileges) api() *swarm.Privileges {
	p := &swarm.Privileges{
		CredentialSpec: some(x.GetCredentialSpec(), (*Privileges_CredentialSpec).api),
		SELinuxContext: some(x.GetSelinuxContext(), func(c *Privileges_SELinuxContext) *swarm.SELinuxContext {
			return &swarm.SELinuxContext{
				Disable: c.GetDisable(), User: c.GetUser(), Role: c.GetRole(), Type: c.GetType(), Level: c.GetLevel(),
			}
		}),
		Seccomp: some(x.GetSeccomp(), func(s *Privileges_SeccompOpts) *swarm.SeccompOpts {
			return &swarm.SeccompOpts{Mode: nameOf(seccompModes(), s.GetMode()), Profile: list(s.GetProfile())}
		}),
		NoNewPrivileges: x.GetNoNewPrivileges(),
	}
	if a := x.GetApparmor(); a != nil {
		p.AppArmor = &swarm.AppArmorOpts{Mode: swarm.AppArmorModeDefault}
		if a.GetMode() == Privileges_AppArmorOpts_DISABLED {
			p.AppArmor.Mode = swarm.AppArmorModeDisabled
		}
	}
	return p
}

func newCredentialSpec(c *swarm.CredentialSpec) *Privileges_CredentialSpec {
	switch {
	case c.Config != "":
		return &Privileges_CredentialSpec{Source: &Privileges_CredentialSpec_Config{Config: c.Config}}
	case c.File != "":
		return &Privileges_CredentialSpec{Source: &Privileges_CredentialSpec_File{File: c.File}}
	case c.Registry != "":
		return &Privileges_CredentialSpec{Source: &Privileges_CredentialSpec_Registry{Registry: c.Registry}}
	}
	return &Privileges_CredentialSpec{}
}

func (x *Privileges_CredentialSpec) api() *swarm.CredentialSpec {
	return &swarm.CredentialSpec{Config: x.GetConfig(), File: x.GetFile(), Registry: x.GetRegistry()}
}
