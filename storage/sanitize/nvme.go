package sanitize

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var le = binary.LittleEndian

// NVM Express base specification 2.0: opcodes of admin commands.
const (
	opGetLogPage = 0x02
	opIdentify   = 0x06
	opFormatNVM  = 0x80
	opSanitize   = 0x84

	allNamespaces = 0xffffffff
)

// passthru is struct nvme_passthru_cmd of linux/nvme_ioctl.h.
type passthru struct {
	opcode, flags       uint8
	_                   uint16
	namespace           uint32
	cdw2, cdw3          uint32
	metadata            uint64
	address             uint64
	metadataLen         uint32
	dataLen             uint32
	cdw10, cdw11, cdw12 uint32
	cdw13, cdw14, cdw15 uint32
	timeout             uint32 // milliseconds
	result              uint32
}

const (
	nvmeIoctlID       = 0x4e40     // _IO('N', 0x40)
	nvmeIoctlAdminCmd = 0xc0484e41 // _IOWR('N', 0x41, struct nvme_passthru_cmd)
)

// admin sends one command; data is where the answer goes, or nil.
func admin(f *os.File, c passthru, data []byte) error {
	var pin runtime.Pinner // the kernel is told an address, which the collector does not see
	defer pin.Unpin()
	if len(data) > 0 {
		pin.Pin(&data[0])
		c.address, c.dataLen = uint64(uintptr(unsafe.Pointer(&data[0]))), uint32(len(data))
	}
	err := control(f, func(fd uintptr) error {
		status, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, nvmeIoctlAdminCmd, uintptr(unsafe.Pointer(&c)))
		switch {
		case errno != 0:
			return errno
		case status != 0:
			return fmt.Errorf("NVMe status %#x", status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("NVMe command %#02x: %w", c.opcode, err)
	}
	return nil
}

// identify asks for one of the data structures of 4096 bytes (CNS).
func identify(f *os.File, namespace, cns uint32) ([]byte, error) {
	data := make([]byte, 4096)
	return data, admin(f, passthru{opcode: opIdentify, namespace: namespace, cdw10: cns}, data)
}

func namespaceOf(f *os.File) (id uint32, err error) {
	err = control(f, func(fd uintptr) error {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, nvmeIoctlID, 0)
		if errno != 0 {
			return fmt.Errorf("asking for the namespace: %w", errno)
		}
		id = uint32(n)
		return nil
	})
	return id, err
}

func askNVMe(f *os.File) (means, reason string, err error) {
	controller, err := identify(f, 0, 1)
	if err != nil {
		return "", "", err
	}
	active, err := identify(f, 0, 2)
	if err != nil {
		return "", "", err
	}
	means, reason = chooseNVMe(controller, le.Uint32(active[4:]) == 0)
	return means, reason, nil
}

// chooseNVMe reads the Identify Controller data structure (figure 275): OACS,
// FNA and SANICAP. alone says that the controller has one namespace only.
func chooseNVMe(controller []byte, alone bool) (means, reason string) {
	format := le.Uint16(controller[256:])&(1<<1) != 0
	fna := controller[524]
	sanitize := le.Uint32(controller[328:])&1 != 0
	const eraseAll, cryptoErase = 1 << 1, 1 << 2
	switch {
	case format && fna&cryptoErase != 0 && (alone || fna&eraseAll == 0):
		return NVMeFormat, ""
	case sanitize && alone:
		return NVMeSanitize, ""
	case sanitize, format && fna&cryptoErase != 0:
		return "", "its controller would erase other namespaces too"
	}
	return "", "its controller has no cryptographic erase, neither by Format nor by Sanitize"
}

// formatNVMe formats the namespace as it is formatted now.
func formatNVMe(f *os.File) error {
	namespace, err := namespaceOf(f)
	if err != nil {
		return err
	}
	data, err := identify(f, namespace, 0)
	if err != nil {
		return err
	}
	return admin(f, passthru{
		opcode: opFormatNVM, namespace: namespace, cdw10: formatWord(data), timeout: uint32(formatLimit / time.Millisecond),
	}, nil)
}

// formatWord is command dword 10 of Format NVM: the format and protection that
// Identify Namespace tells (FLBAS, DPS), and a cryptographic erase.
func formatWord(namespace []byte) uint32 {
	const cryptographic = 2
	flbas, dps := uint32(namespace[26]), uint32(namespace[29])
	return flbas&0xf | // the lower bits of the format's index
		flbas>>4&1<<4 | // metadata behind the data
		dps&7<<5 | dps>>3&1<<8 | // protection and where it is
		cryptographic<<9 |
		flbas>>5&3<<12 // the upper bits of the index
}

func sanitizeNVMe(ctx context.Context, f *os.File) error {
	const cryptoErase = 4
	if err := admin(f, passthru{opcode: opSanitize, cdw10: cryptoErase}, nil); err != nil {
		return err
	}
	for {
		// Sanitize Status: log page 0x81, 20 bytes; their number less one, in
		// dwords.
		page := make([]byte, 20)
		if err := admin(f, passthru{opcode: opGetLogPage, namespace: allNamespaces, cdw10: 0x81 | (20/4-1)<<16}, page); err != nil {
			return err
		}
		switch le.Uint16(page[2:]) & 7 {
		case 1, 4: // done; done, and without deallocating
			return nil
		case 2:
		case 3:
			return errors.New("the disk says that sanitizing failed")
		default:
			return errors.New("the disk does not say that it sanitizes")
		}
		select {
		case <-time.After(askAgain):
		case <-ctx.Done():
			// It goes on by itself; the disk refuses everything else meanwhile.
			return context.Cause(ctx)
		}
	}
}
