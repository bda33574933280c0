package local

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const cutTable = "cuts"

// filter puts the drops on the fabric's bridge, in one step. ARP passes, so
// that a cut is silence and not "host unreachable".
func (f fabric) filter(ns netns.NsHandle, all []drop) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: cutTable}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	if len(all) > 0 {
		c.AddTable(t)
		ch := c.AddChain(&nftables.Chain{
			Name: "forward", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		for _, d := range all {
			for _, proto := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: dropExprs(d, proto)})
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("packet filter of the fabric: %w", err)
	}
	return nil
}

func dropExprs(d drop, proto uint16) []expr.Any {
	e := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(proto)},
	}
	if d.In != "" {
		e = append(e, device(expr.MetaKeyIIFNAME, expr.CmpOpEq, d.In)...)
	}
	if d.Out != "" {
		e = append(e, device(expr.MetaKeyOIFNAME, expr.CmpOpEq, d.Out)...)
	}
	return append(e, &expr.Verdict{Kind: expr.VerdictDrop})
}

func device(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

// masquerade lets machines reach the world under the host's address, also where
// another's firewall forwards nothing that it doesn't know.
func (f fabric) masquerade(subnet netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: f.table}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	ch := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	const sourceAddress = 12 // its offset in the IPv4 header
	mask := ipNet(subnet).Mask
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append([]expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: sourceAddress, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: subnet.Masked().Addr().AsSlice()},
	}, append(device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, f.link), &expr.Masq{})...)})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("packet filter of the host: %w", err)
	}
	return f.admit(true)
}

func (f fabric) removeTable() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: f.table}
	c.AddTable(t)
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("packet filter of the host: %w", err)
	}
	return f.admit(false)
}

// comment marks our rules in others' chains.
func (f fabric) comment() string { return "legion machine " + f.link }

// admit puts rules that let the fabric's device pass into every chain of the
// host's that drops what it forwards by default, as Docker's does; or takes
// them out. An accept in a chain of our own could not overrule such a drop.
func (f fabric) admit(pass bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("packet filter: list chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Type != nftables.ChainTypeFilter {
			continue
		}
		drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		if err := f.admitIn(ch, pass && drops); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("packet filter: chain %s of table %s forwards nothing that it doesn't know, and can't be told to let machines pass: %w", ch.Name, ch.Table.Name, err)
		}
	}
	return nil
}

func (f fabric) admitIn(ch *nftables.Chain, pass bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	rules, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return err
	}
	change := pass
	for _, r := range rules {
		if text, _ := userdata.GetString(r.UserData, userdata.TypeComment); strings.TrimRight(text, "\x00") == f.comment() {
			if err := c.DelRule(r); err != nil {
				return err
			}
			change = true
		}
	}
	if !change {
		return nil
	}
	if pass {
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			c.InsertRule(&nftables.Rule{
				Table: ch.Table, Chain: ch,
				Exprs:    append(device(key, expr.CmpOpEq, f.link), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}),
				UserData: userdata.AppendString(nil, userdata.TypeComment, f.comment()),
			})
		}
	}
	return c.Flush()
}
