package sanitize

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ATA/ATAPI command set (ACS-3): commands of the security feature set.
const (
	ataIdentify     = 0xec
	ataSetPassword  = 0xf1
	ataErasePrepare = 0xf3
	ataEraseUnit    = 0xf4
	ataDisable      = 0xf6 // SECURITY DISABLE PASSWORD
	ataPassword     = "firstlight"
)

// Protocols of ATA PASS-THROUGH (SAT-3, 12.2.2).
const (
	nonData = 3
	pioIn   = 4
	pioOut  = 5
)

// sgHeader is struct sg_io_hdr of scsi/sg.h.
type sgHeader struct {
	interfaceID             int32
	direction               int32
	cmdLen, senseLen        uint8
	iovecs                  uint16
	dataLen                 uint32
	data, cmd, sense        uintptr
	timeout                 uint32 // milliseconds
	flags                   uint32
	packID                  int32
	_                       int32
	userPointer             uintptr
	status, maskedStatus    uint8
	msgStatus, senseWritten uint8
	hostStatus              uint16
	driverStatus            uint16
	residual                int32
	duration                uint32
	info                    uint32
}

const (
	sgIO       = 0x2285
	sgNone     = -1
	sgToDevice = -2
	sgFrom     = -3
)

// ata sends one command through the kernel's SCSI layer. data is one sector of
// 512 bytes, or nil.
func ata(f *os.File, command, protocol byte, data []byte, limit time.Duration) error {
	cdb := passThrough(command, protocol)
	sense := make([]byte, 32)
	h := sgHeader{
		interfaceID: 'S', direction: sgNone,
		cmdLen: uint8(len(cdb)), cmd: uintptr(unsafe.Pointer(&cdb[0])),
		senseLen: uint8(len(sense)), sense: uintptr(unsafe.Pointer(&sense[0])),
		timeout: uint32(limit / time.Millisecond),
	}
	var pin runtime.Pinner // the kernel is told addresses, which the collector does not see
	defer pin.Unpin()
	pin.Pin(&cdb[0])
	pin.Pin(&sense[0])
	if data != nil {
		pin.Pin(&data[0])
		h.data, h.dataLen, h.direction = uintptr(unsafe.Pointer(&data[0])), uint32(len(data)), sgFrom
		if protocol == pioOut {
			h.direction = sgToDevice
		}
	}
	err := control(f, func(fd uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, sgIO, uintptr(unsafe.Pointer(&h))); errno != 0 {
			return errno
		}
		if h.status != 0 || h.hostStatus != 0 || h.driverStatus&^8 != 0 { // 8: there is sense
			return fmt.Errorf("SCSI status %#x, host %#x, driver %#x, sense % x", h.status, h.hostStatus, h.driverStatus, sense[:h.senseWritten])
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("ATA command %#02x: %w", command, err)
	}
	return nil
}

// passThrough is the CDB of ATA PASS-THROUGH (16) for a command that transfers at
// most one sector.
func passThrough(command, protocol byte) []byte {
	cdb := make([]byte, 16)
	cdb[0], cdb[1], cdb[14] = 0x85, protocol<<1, command
	if protocol != nonData {
		const fromDevice, inBlocks, inCount = 1 << 3, 1 << 2, 2
		cdb[2], cdb[6] = inBlocks|inCount, 1
		if protocol == pioIn {
			cdb[2] |= fromDevice
		}
	}
	return cdb
}

func askATA(f *os.File) (means, reason string, err error) {
	data := make([]byte, 512)
	if err := ata(f, ataIdentify, pioIn, data, 10*time.Second); err != nil {
		// A SCSI disk knows no such command, and has no other for this.
		return "", "it is no ATA disk, and SCSI disks have no command that this version knows", nil
	}
	means, reason = chooseATA(data)
	return means, reason, nil
}

// chooseATA reads IDENTIFY DEVICE data, words 82 and 128.
func chooseATA(data []byte) (means, reason string) {
	word := func(n int) uint16 { return le.Uint16(data[2*n:]) }
	status := word(128)
	switch {
	case word(82)&(1<<1) == 0 || status&1 == 0:
		return "", "it has no ATA security feature set"
	case status&(1<<3) != 0:
		return "", "its firmware has frozen it: the command is refused until it is plugged in anew or the machine sleeps"
	case status&(1<<2) != 0:
		return "", "it is locked with a password"
	case status&(1<<1) != 0:
		return "", "it has a password already"
	case status&(1<<5) != 0:
		return ATAEnhanced, ""
	}
	return ATASecurity, ""
}

// sendATA is ata on an open disk.
type sendATA func(command, protocol byte, data []byte, limit time.Duration) error

// eraseATA erases with a password, which the disk forgets when it has erased. One
// that refuses, or fails, has it taken off again, else it would be locked after
// the next start.
func eraseATA(send sendATA, enhanced bool) error {
	const soon = 30 * time.Second
	err := send(ataSetPassword, pioOut, passwordSector(false), soon)
	if err != nil {
		return err
	}
	if err = send(ataErasePrepare, nonData, nil, soon); err == nil {
		err = send(ataEraseUnit, pioOut, passwordSector(enhanced), ataLimit)
	}
	if err == nil {
		return nil
	}
	if left := send(ataDisable, pioOut, passwordSector(false), soon); left != nil {
		return errors.Join(err, fmt.Errorf("the disk keeps the password %q: %w", ataPassword, left))
	}
	return err
}

// passwordSector is what SET PASSWORD (of the user, at high security, which all
// zeroes say) and ERASE UNIT take: a word of control and 32 bytes of password.
func passwordSector(enhanced bool) []byte {
	data := make([]byte, 512)
	if enhanced {
		data[0] = 1 << 1
	}
	copy(data[2:34], ataPassword)
	return data
}
