package control

import (
	"crypto/rand"
	"math/big"
	"strconv"
)

// randomName returns a name for what a user gave none, such as "steady_aqueduct":
// with digits at its end if it is not the first try. Safe for concurrent use.
func randomName(try int) string {
	name := pick(qualities()) + "_" + pick(things())
	if try > 0 {
		name += strconv.Itoa(below(1000))
	}
	return name
}

func pick(words []string) string { return words[below(len(words))] }

func below(n int) int {
	i, _ := rand.Int(rand.Reader, big.NewInt(int64(n))) // never fails, see crypto/rand
	return int(i.Int64())
}

func qualities() []string {
	return []string{
		"able", "agile", "amber", "ample", "azure", "bold", "brave", "bright", "brisk", "calm", "candid", "clear", "clever", "cobalt", "cordial", "crisp",
		"deft", "eager", "early", "earnest", "fair", "fervent", "firm", "fleet", "frank", "gentle", "golden", "grand", "hardy", "honest", "humble", "ivory",
		"jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow", "merry", "mighty", "modest", "neat", "nimble", "noble", "patient", "placid", "proud",
		"quick", "quiet", "ready", "robust", "rustic", "serene", "sharp", "silver", "sober", "solid", "stable", "steady", "sturdy", "subtle", "sunny", "swift",
		"tender", "tidy", "tranquil", "trusty", "upbeat", "upright", "valiant", "vivid", "warm", "willing", "witty", "zesty",
	}
}

func things() []string {
	return []string{
		"abacus", "acorn", "amphora", "anchor", "anvil", "aqueduct", "arch", "atrium", "banner", "basilica", "beacon", "bridge", "buckler", "camp", "canal", "cart",
		"cedar", "chariot", "citadel", "cohort", "column", "compass", "cypress", "denarius", "dome", "eagle", "falcon", "ferry", "fig", "forge", "forum", "fountain",
		"galley", "gate", "granary", "harbour", "helmet", "herald", "hill", "javelin", "lantern", "laurel", "lyre", "marble", "milestone", "mosaic", "oak", "oar",
		"olive", "orchard", "parchment", "pillar", "plaza", "quarry", "quill", "raft", "rampart", "river", "road", "rudder", "sail", "scroll", "shield", "signet",
		"standard", "stylus", "sundial", "temple", "toga", "torch", "tower", "trident", "tunic", "vessel", "vine", "wagon",
	}
}
