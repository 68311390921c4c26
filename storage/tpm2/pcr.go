package tpm2

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"

	gotpm "github.com/google/go-tpm/tpm2"

	"github.com/firstlight/firstlight/storage"
)

// checkPCRs takes sorted, different numbers of PCRs.
func checkPCRs(pcrs []uint) error {
	if len(pcrs) == 0 || len(pcrs) > 8 || !slices.IsSorted(pcrs) || len(slices.Compact(slices.Clone(pcrs))) != len(pcrs) || pcrs[len(pcrs)-1] >= PCRs {
		return storage.Errorf(storage.CodePCR, "keys are sealed to one to eight PCRs with numbers from 0 to %d, not to %v", PCRs-1, pcrs)
	}
	return nil
}

func selection(pcrs []uint) gotpm.TPMLPCRSelection {
	return gotpm.TPMLPCRSelection{PCRSelections: []gotpm.TPMSPCRSelection{{
		Hash: bank, PCRSelect: gotpm.PCClientCompatible.PCRs(pcrs...),
	}}}
}

// values reads at most eight PCRs, in the order of their numbers.
func (t *TPM) values(pcrs []uint) ([][32]byte, error) {
	read, err := gotpm.PCRRead{PCRSelectionIn: selection(pcrs)}.Execute(t.device)
	if err != nil {
		return nil, fmt.Errorf("reading PCR %s: %w", list(pcrs), err)
	}
	if len(read.PCRValues.Digests) != len(pcrs) {
		return nil, storage.Errorf(storage.CodePCR, "the TPM has no SHA-256 bank of PCRs: switch it on in the firmware's settings")
	}
	var values [][32]byte
	for _, digest := range read.PCRValues.Digests {
		if len(digest.Buffer) != sha256.Size {
			return nil, fmt.Errorf("a PCR has %d bytes, not %d", len(digest.Buffer), sha256.Size)
		}
		values = append(values, [32]byte(digest.Buffer))
	}
	return values, nil
}

// policyOf is the digest of a policy that holds while the PCRs have these values
// (TPM 2.0 Library, part 3, TPM2_PolicyPCR).
func policyOf(pcrs []uint, values [][32]byte) ([]byte, error) {
	all := sha256.New()
	for _, value := range values {
		all.Write(value[:]) // a hash never fails
	}
	policy, err := gotpm.NewPolicyCalculator(gotpm.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	step := gotpm.PolicyPCR{PcrDigest: gotpm.TPM2BDigest{Buffer: all.Sum(nil)}, Pcrs: selection(pcrs)}
	if err := step.Update(policy); err != nil {
		return nil, err
	}
	return policy.Hash().Digest, nil
}

func numbers(from, to uint) []uint {
	var all []uint
	for n := from; n < to; n++ {
		all = append(all, n)
	}
	return all
}

// list writes numbers for people: "7", "0+7".
func list(pcrs []uint) string {
	var words []string
	for _, n := range pcrs {
		words = append(words, strconv.FormatUint(uint64(n), 10))
	}
	return strings.Join(words, "+")
}
