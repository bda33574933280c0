package linux

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// transaction is a change of the packet filter in the thread's namespace: all of it
// is done, or nothing. It writes what sandboxes have, in one message; tables of the
// host, with their maps, are written by the nftables library.
type transaction struct {
	messages
	err   error // of what could not be written
	drops bool
}

func (t *transaction) message(what string, kind uint16, f nftables.TableFamily, flags uint16) {
	if t.empty() {
		t.buf = make([]byte, 0, 8<<10) // what most sandboxes have fits in
		t.edge("begin", unix.NFNL_MSG_BATCH_BEGIN)
	}
	t.begin(what, unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, byte(f), 0, 0, 0) // struct nfgenmsg
}

// edge of a batch.
func (t *transaction) edge(what string, kind uint16) {
	t.begin(what, kind, 0, binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, unix.NFNL_SUBSYS_NFTABLES)...)
}

// fresh makes an empty table. absent: there is none, else EEXIST; if not, it takes
// the place of one that may be there.
func (t *transaction) fresh(x *nftables.Table, absent bool) {
	if absent {
		t.table(x, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
		return
	}
	t.drop(x)
	t.table(x, unix.NLM_F_CREATE)
}

// drop removes a table that may be there.
func (t *transaction) drop(x *nftables.Table) {
	t.table(x, unix.NLM_F_CREATE) // so that there is one to delete
	t.message("remove table "+x.Name, unix.NFT_MSG_DELTABLE, x.Family, 0)
	t.text(unix.NFTA_TABLE_NAME, x.Name)
	t.drops = true
}

func (t *transaction) table(x *nftables.Table, flags uint16) {
	t.message("table "+x.Name, unix.NFT_MSG_NEWTABLE, x.Family, flags)
	t.text(unix.NFTA_TABLE_NAME, x.Name)
	t.bigEndian(unix.NFTA_TABLE_FLAGS, 0)
}

// chain makes a base chain. device is empty but for families that hook into one.
func (t *transaction) chain(x *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int, device string) {
	t.message("chain "+name, unix.NFT_MSG_NEWCHAIN, x.Family, unix.NLM_F_CREATE)
	t.text(unix.NFTA_CHAIN_TABLE, x.Name)
	t.text(unix.NFTA_CHAIN_NAME, name)
	at := t.nest(unix.NFTA_CHAIN_HOOK | unix.NLA_F_NESTED)
	t.bigEndian(unix.NFTA_HOOK_HOOKNUM, uint32(*hook))
	t.bigEndian(unix.NFTA_HOOK_PRIORITY, uint32(int32(priority)))
	if device != "" {
		t.text(unix.NFTA_HOOK_DEV, device)
	}
	t.close(at)
	t.text(unix.NFTA_CHAIN_TYPE, string(kind))
}

// rule appends a rule to a chain.
func (t *transaction) rule(x *nftables.Table, chain string, parts ...[]expr.Any) {
	t.ruleWith(x, chain, nil, parts...)
}

// ruleWith appends a rule that ends in what last, if there is one, writes as one
// element of a list.
func (t *transaction) ruleWith(x *nftables.Table, chain string, last func(), parts ...[]expr.Any) {
	t.message("rule in chain "+chain, unix.NFT_MSG_NEWRULE, x.Family, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	t.text(unix.NFTA_RULE_TABLE, x.Name)
	t.text(unix.NFTA_RULE_CHAIN, chain)
	list := t.nest(unix.NFTA_RULE_EXPRESSIONS | unix.NLA_F_NESTED)
	for _, l := range parts {
		for _, e := range l {
			data, err := expr.Marshal(byte(x.Family), e)
			if err != nil && t.err == nil {
				t.err = err
			}
			t.attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data...)
		}
	}
	if last != nil {
		at := t.nest(unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED)
		last()
		t.close(at)
	}
	t.close(list)
}

// commit makes the change, in the thread's namespace.
func (t *transaction) commit() error {
	if t.err != nil {
		return fmt.Errorf("write packet filter rules: %w", t.err)
	}
	if t.empty() {
		return nil
	}
	fd, err := openNetlink(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	shut := func() { _ = unix.Close(fd) }
	if t.drops { // the kernel waits some milliseconds as such a socket is closed
		defer func() { go shut() }()
	} else {
		defer shut()
	}
	t.flagLast(unix.NLM_F_ACK)
	acked := t.count()
	t.edge("end", unix.NFNL_MSG_BATCH_END)
	return t.send(fd, acked)
}
