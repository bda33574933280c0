package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// An accept in our chain can't overrule a drop in somebody else's: every chain
// at a hook has its say. So where another's forward chain drops what it doesn't
// know (as Docker's iptables rules make it), it is given rules, at its head,
// that let our bridges pass; what may not pass has been dropped by our own
// chain before. They look like rules that iptables would make.

// foreignComment marks a rule of ours in a chain that isn't.
func (p *Plane) foreignComment(device string) string { return "legion/" + p.owner + " " + device }

// admit has foreign forward chains that drop by default let the bridges pass.
func (p *Plane) admit(devices []string) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	var errs []error
	for _, ch := range chains {
		if !dropsForwarded(ch) {
			continue
		}
		// Chains come and go while we look; the next change of theirs is an alarm.
		if err := p.admitIn(ch, devices); err != nil {
			errs = append(errs, fmt.Errorf("chain %s of table %s drops by default and can't be told to let bridges pass: %w", ch.Name, ch.Table.Name, err))
		}
	}
	return errors.Join(errs...)
}

func dropsForwarded(ch *nftables.Chain) bool {
	return ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Type == nftables.ChainTypeFilter &&
		ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop &&
		(ch.Table.Family == nftables.TableFamilyIPv4 || ch.Table.Family == nftables.TableFamilyIPv6 || ch.Table.Family == nftables.TableFamilyINet)
}

func (p *Plane) admitIn(ch *nftables.Chain, devices []string) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	rules, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return err
	}
	var have []string
	var mine []*nftables.Rule
	for _, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		if device, ok := strings.CutPrefix(strings.TrimRight(comment, "\x00"), p.foreignComment("")); ok {
			mine = append(mine, r)
			have = append(have, device)
		}
	}
	slices.Sort(have)
	var want []string
	for _, d := range devices {
		want = append(want, d, d) // in and out
	}
	slices.Sort(want)
	if slices.Equal(have, want) {
		return nil
	}
	return p.transact(func(c *filterConn) error {
		for _, r := range mine {
			if err := c.DelRule(r); err != nil {
				return err
			}
		}
		for _, d := range devices {
			for _, match := range [][]expr.Any{iif(expr.CmpOpEq, d), oif(expr.CmpOpEq, d)} {
				c.InsertRule(&nftables.Rule{
					Table: ch.Table, Chain: ch,
					Exprs:    append(match, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}),
					UserData: userdata.AppendString(nil, userdata.TypeComment, p.foreignComment(d)),
				})
			}
		}
		return nil
	})
}
