package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func example(t testing.TB) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	paths, err := filepath.Glob("testdata/example/*")
	if err != nil || len(paths) == 0 {
		t.Fatal("no example files", err)
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(p)] = data
	}
	return files
}

var compareAddresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestExampleMeansWhatItSays(t *testing.T) {
	c, err := Parse(example(t), DefaultPort)
	if err != nil {
		t.Fatal(err)
	}
	dns := []netip.Addr{netip.MustParseAddr("192.168.1.53"), netip.MustParseAddr("8.8.8.8")}
	subnet := func(id, gateway string, domain string, manage bool, vlan uint16) netconfig.Subnet {
		a := netip.MustParseAddr(gateway)
		return netconfig.Subnet{ID: id, Gateway: a, Prefix: netip.PrefixFrom(a, 24).Masked(), Domain: domain, DNS: dns, Manage: manage, VlanID: vlan}
	}
	want := Config{
		Machine: Machine{Tags: map[string]string{"RequiredImage": "hypervisor/2024-01-18:22:57:43", "Type": "SuperMicro Ultra"}},
		Storage: Default(),
		Network: netconfig.Spec{
			Hostname: "hyper0",
			Entries: []netconfig.Entry{{
				Hostname: "hyper0",
				IP:       netip.MustParseAddr("192.168.1.2"),
				MAC:      netconfig.MAC{0xde, 0xad, 0xbe, 0xef, 0, 1},
			}},
			Subnets: []netconfig.Subnet{
				subnet("Dev", "192.168.100.1", "dev.example.com", true, 100),
				subnet("Hypervisors", "192.168.1.1", "hypervisors.example.com", false, 0),
				subnet("Prod", "192.168.120.1", "prod.example.com", true, 120),
			},
		},
		Image:        "debian/12/2026-11-20",
		ImageServers: []string{"images.example.com:6971"},
	}
	if d := cmp.Diff(want, c, compareAddresses); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestDefaultLayoutOnlyWithoutFile(t *testing.T) {
	files := example(t)
	delete(files, LayoutFile)
	c, err := Parse(files, DefaultPort)
	if err != nil {
		t.Fatal(err)
	}
	if !c.LayoutFromDefault {
		t.Error("LayoutFromDefault is false without a storage-layout.json")
	}
	if d := cmp.Diff(Default(), c.Storage); d != "" {
		t.Error(d)
	}
	files[LayoutFile] = nil
	if _, err := Parse(files, DefaultPort); err == nil {
		t.Error("an empty storage-layout.json was taken for the default")
	}
}

func TestEveryField(t *testing.T) {
	c, err := Parse(map[string][]byte{
		ImageFile:       []byte("# the newest\n\n  debian/12@sha256:" + strings.Repeat("0a", 32) + " \r\n"),
		ToolsImageFile:  []byte("tools/1"),
		ImageServerFile: []byte("[2001:db8::1]:7000\n"),
		SiteServerFile:  []byte("https://site.example.com:8080/\n"),
		RandomSeedFile:  {1, 2, 3},
		MachineFile: []byte("\xef\xbb\xbf" + `// written by hand
{
! old
  "LOCATION": "dc1", "machine": {"hostName": "a.example.com", "HostIpAddress": "10.0.0.9", "HostMacAddress": "52-54-00-00-00-01", "VlanTrunk": true,
   "GatewaySubnetId": "A", "ArchitectureType": "amd64", "MemoryInMiB": 4096, "NumCPUs": 2, "TotalVolumeBytes": 10, "OwnerGroups": ["x"], "OwnerUsers": ["y"],
   "SecondaryNetworkEntries": [{"HostMacAddress": "52:54:00:00:00:02", "SubnetId": "A"}], "Location": null},
# comment
  "Subnets": [{"Id": "A", "IpGateway": "10.0.0.1", "IpMask": "255.255.0.0", "VlanId": 7, "DomainName": "example.com.",
     "FirstDynamicIP": "10.0.0.50", "AllowedUsers": [], "DisableMetadata": true, "Tags": {"k": "v"}, "Zone": 3}],
  "Install": {"KernelOptions": " quiet   mitigations=off", "WaitAfterFailureSeconds": 0, "NetworkRenderer": "ifupdown"}
}`),
		LayoutFile: []byte(`{"BootDriveLayout": [
   {"MountPoint": "/", "FileSystemType": "ext4", "FileSystemLabel": "rootfs", "MinimumBytes": 1, "MinimumFreeBytes": 2, "BytesPerInode": 4096, "ReservedBlocksPercentage": 1, "RootUserId": 3, "RootGroupId": 4},
   {"MountPoint": "/srv/", "FileSystemType": "xfs"}], "UseKexec": true}`),
	}, DefaultPort)
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr
	zero := uint64(0)
	want := Config{
		Machine: Machine{Location: "dc1", Architecture: "amd64", MemoryMiB: 4096, CPUs: 2, VolumeBytes: 10},
		Storage: storage.Spec{UseKexec: true, Volumes: []storage.VolumeSpec{
			{FileSystem: "ext4", Label: "rootfs", MountPoint: "/", MinimumBytes: 1, MinimumFreeBytes: 2, BytesPerInode: 4096, ReservedBlocksPercentage: 1, RootUserID: 3, RootGroupID: 4},
			{FileSystem: "xfs", MountPoint: "/srv"},
		}},
		Network: netconfig.Spec{
			Hostname:        "a.example.com",
			GatewaySubnetID: "A",
			Entries: []netconfig.Entry{
				{Hostname: "a.example.com", IP: a("10.0.0.9"), MAC: netconfig.MAC{0x52, 0x54, 0, 0, 0, 1}, VlanTrunk: true},
				{MAC: netconfig.MAC{0x52, 0x54, 0, 0, 0, 2}, SubnetID: "A"},
			},
			Subnets: []netconfig.Subnet{{ID: "A", Gateway: a("10.0.0.1"), Prefix: netip.MustParsePrefix("10.0.0.0/16"), Domain: "example.com", VlanID: 7}},
		},
		Install:      Install{KernelOptions: "quiet mitigations=off", WaitAfterFailureSeconds: &zero, NetworkRenderer: "ifupdown"},
		Image:        "debian/12@sha256:" + strings.Repeat("0a", 32),
		ToolsImage:   "tools/1",
		ImageServers: []string{"[2001:db8::1]:7000"},
		SiteServer:   "https://site.example.com:8080",
		RandomSeed:   []byte{1, 2, 3},
		Warnings:     []string{"config.json:9: field Subnets[0].Zone is not used"},
	}
	if d := cmp.Diff(want, c, compareAddresses); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestEveryMistakeAtOnce is the promise of the package: one look at the console
// is enough to correct every file.
func TestEveryMistakeAtOnce(t *testing.T) {
	_, err := Parse(map[string][]byte{
		MachineFile: []byte(`{
  "Machine": {
    "HostIpAdress": "10.0.0.1",
    "HostMacAddress": "52:54",
    "VlanTrunk": "yes"
  },
  "Subnets": [
    {"Id": "Dev", "IpGateway": "10.1.0.1", "IpMask": "255.0.255.0"},
    {"Id": "Dev", "IpGateway": "10.1.0.1", "IpMask": "255.255.255.0", "VlanId": 5000}
  ],
  "Install": {"Foo": 1, "FirstBoot": {}},
  "Fleet": 1
}`),
		LayoutFile: []byte(`# layout
{"BootDriveLayout": [
    {"MountPoint": "/", "MinimumFreeByte": 1},
    {"MountPoint": "home", "MinimumBytes": "2G"},
    {"MountPoint": "/x", "FileSystemType": "ext5"},
    {"MountPoint": "/x"}
  ],
  "Encrypt": true, "encrypt": false,
  "Mirror": "yes"
}`),
		ImageFile:       []byte("debian//12\n"),
		ImageServerFile: []byte("host:99999\n"),
	}, DefaultPort)
	want := `config.json:3: unknown field Machine.HostIpAdress: did you mean "HostIpAddress"?
CFG-006: config.json:4: Machine.HostMacAddress: "52:54" is not a MAC address such as 52:54:00:12:34:56
CFG-005: config.json:5: Machine.VlanTrunk: want true or false, have "yes" (write it without quotes)
CFG-006: config.json:8: Subnets[0].IpMask: the mask 255.0.255.0 has a hole: its ones must come first
CFG-006: config.json:9: Subnets[1].VlanId: VLANs have the numbers 1 to 4094, not 5000
CFG-004: config.json:9: Subnets[1].Id: the subnet "Dev" is in line 8 already
CFG-003: config.json:11: unknown field Install.Foo
CFG-007: config.json:11: Install.FirstBoot is not supported by this version: remove it
CFG-003: storage-layout.json:3: unknown field BootDriveLayout[0].MinimumFreeByte: did you mean "MinimumFreeBytes"?
CFG-006: storage-layout.json:4: BootDriveLayout[1].MountPoint: "home" does not begin with /
CFG-005: storage-layout.json:4: BootDriveLayout[1].MinimumBytes: want a number, have "2G" (write it without quotes, in plain digits)
CFG-006: storage-layout.json:5: BootDriveLayout[2].FileSystemType: there is no file system "ext5" here: have "ext4", "vfat", "xfs", "btrfs", "swap": did you mean "ext4"?
CFG-004: storage-layout.json:6: BootDriveLayout[3].MountPoint: line 5 has the mount point /x already
CFG-004: storage-layout.json:8: encrypt stands twice: it is in line 8 already
CFG-005: storage-layout.json:9: Mirror: want true or false, have "yes" (write it without quotes)
CFG-009: imagename:1: "debian//12" is not an image name: it is a path such as debian/12/2026-11-20, without empty parts, . and ..
CFG-010: imageserver:1: "host:99999" is not host or host:port: a port is a number from 1 to 65535`
	if err == nil {
		t.Fatal("accepted")
	}
	got := map[string]bool{}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		got[line] = true
	}
	for line := range strings.SplitSeq(want, "\n") {
		if !got[line] {
			t.Errorf("missing: %s", line)
		}
		delete(got, line)
	}
	for line := range got {
		t.Errorf("too much: %s", line)
	}
	if code := err.(interface{ Code() string }).Code(); code != CodeUnknown {
		t.Errorf("Code() = %s: want the first mistake's", code)
	}
	if one, ok := errors.AsType[*Mistake](err); !ok || one.Line != 3 {
		t.Error("the mistakes cannot be reached by errors.As")
	}
}

func TestMistakes(t *testing.T) {
	machine := func(text string) map[string][]byte {
		return map[string][]byte{MachineFile: []byte(text), ImageFile: []byte("a")}
	}
	layout := func(text string) map[string][]byte {
		return map[string][]byte{MachineFile: []byte("{}"), ImageFile: []byte("a"), LayoutFile: []byte(text)}
	}
	file := func(name, text string) map[string][]byte {
		return map[string][]byte{MachineFile: []byte("{}"), ImageFile: []byte("a"), name: []byte(text)}
	}
	tests := map[string]struct {
		files      map[string][]byte
		code, want string
	}{
		"no config.json":      {map[string][]byte{ImageFile: []byte("a")}, CodeMissing, "config.json: there is no such file for this machine"},
		"no imagename":        {map[string][]byte{MachineFile: []byte("{}")}, CodeMissing, "imagename: there is no such file for this machine"},
		"site says no":        {map[string][]byte{MachineFile: []byte("{\n\"error\": \"decommissioned\", \"Machine\": 3}")}, CodeRefused, "config.json:2: the site refuses to install this machine: decommissioned"},
		"cut off":             {machine("{\n\"Machine\": {\n"), CodeSyntax, "config.json:2: the file ends in the middle: a bracket or quote is not closed"},
		"empty":               {machine("\n# nothing\n"), CodeSyntax, "config.json: the file is empty"},
		"trailing garbage":    {machine("{}\n\n  x"), CodeSyntax, "config.json:3: invalid character 'x' after top-level value: nothing may follow the document"},
		"second document":     {machine("{}\n{}"), CodeSyntax, "config.json:2: invalid character '{' after top-level value: nothing may follow the document"},
		"comma too many":      {machine("{\n\"Machine\": {},\n}"), CodeSyntax, "config.json:3: invalid character '}' looking for beginning of object key string: is there a comma too many before it?"},
		"comma missing":       {machine("{\n\"Location\": \"a\"\n\"Machine\": {}\n}"), CodeSyntax, `config.json:3: invalid character '"' after object key:value pair: is a comma missing before it?`},
		"not UTF-8":           {machine("{\n\"Location\": \"\xff\"}"), CodeSyntax, "config.json:2: not UTF-8 text"},
		"not an object":       {machine("[]"), CodeType, "config.json:1: the document: want an object, have a list"},
		"float":               {machine("{\"Machine\": {\"NumCPUs\": 1.5}}"), CodeType, "config.json:1: Machine.NumCPUs: want a whole number from 0 to 18446744073709551615, have 1.5"},
		"negative":            {machine("{\"Machine\": {\"NumCPUs\": -1}}"), CodeType, "config.json:1: Machine.NumCPUs: want a whole number from 0 to 18446744073709551615, have -1"},
		"tag twice":           {machine("{\"Machine\": {\"Tags\": {\"a\": \"1\",\n\"a\": \"2\"}}}"), CodeDuplicate, `config.json:2: Machine.Tags has "a" twice: it stands in line 1 already`},
		"no such subnet":      {machine(`{"Machine": {"GatewaySubnetId": "Dve"}, "Subnets": [{"Id":"Dev","IpGateway":"10.0.0.1","IpMask":"255.0.0.0"}]}`), CodeValue, `config.json:1: Machine.GatewaySubnetId: there is no subnet "Dve": did you mean "Dev"?`},
		"address twice":       {machine(`{"Machine": {"HostIpAddress": "10.0.0.1", "SecondaryNetworkEntries": [{"HostIpAddress": "10.0.0.1"}]}}`), CodeDuplicate, "config.json:1: Machine.SecondaryNetworkEntries[0].HostIpAddress: Machine.HostIpAddress has the address 10.0.0.1 already"},
		"multicast MAC":       {machine(`{"Machine": {"HostMacAddress": "01:00:5e:00:00:01"}}`), CodeValue, "config.json:1: Machine.HostMacAddress: 01:00:5e:00:00:01 is a group address: no interface has it"},
		"bad hostname":        {machine(`{"Machine": {"Hostname": "a b"}}`), CodeValue, `config.json:1: Machine.Hostname: "a b" is not a host name: ' ' cannot stand in it`},
		"bad address":         {machine(`{"Machine": {"HostIpAddress": "10.0.0"}}`), CodeValue, `config.json:1: Machine.HostIpAddress: "10.0.0" is not an IP address`},
		"subnet without mask": {machine(`{"Subnets": [{"Id":"Dev","IpGateway":"10.0.0.1"}]}`), CodeValue, "config.json:1: Subnets[0] needs IpGateway and IpMask: together they say which addresses the subnet has"},
		"mask of IPv6":        {machine(`{"Subnets": [{"Id":"Dev","IpGateway":"10.0.0.1","IpMask":"ffff::"}]}`), CodeValue, `config.json:1: Subnets[0].IpMask: the mask "ffff::" does not fit the address 10.0.0.1`},
		"kernel options":      {machine(`{"Install": {"KernelOptions": "a$(b)"}}`), CodeValue, "config.json:1: Install.KernelOptions: kernel options contain '$': plain printable ASCII without any of $`\\';&|<>{} is possible"},
		"other renderer":      {machine(`{"Install": {"NetworkRenderer": "wicked"}}`), CodeValue, `config.json:1: Install.NetworkRenderer: there is no network renderer "wicked": have "ifupdown", "networkd", "netplan", "networkmanager"`},
		"no renderer":         {machine(`{"Install": {"NetworkRenderer": "ifupdwn"}}`), CodeValue, `config.json:1: Install.NetworkRenderer: there is no network renderer "ifupdwn": did you mean "ifupdown"?`},
		"endless wait":        {machine(`{"Install": {"WaitAfterFailureSeconds": 604801}}`), CodeValue, "config.json:1: Install.WaitAfterFailureSeconds: at most 604800 (a week), not 604801"},
		"no root":             {layout(`{"BootDriveLayout": [{"MountPoint": "/home"}]}`), CodeValue, "storage-layout.json: BootDriveLayout has no volume with the MountPoint /"},
		"no mount point":      {layout(`{"BootDriveLayout": [{"MountPoint": "/"}, {}]}`), CodeValue, "storage-layout.json:1: BootDriveLayout[1] has no MountPoint"},
		"unclean":             {layout(`{"BootDriveLayout": [{"MountPoint": "/"}, {"MountPoint": "/a/../b"}]}`), CodeValue, `storage-layout.json:1: BootDriveLayout[1].MountPoint: "/a/../b" should be written "/b"`},
		"unknown in layout":   {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Completely": 1}`), CodeUnknown, "storage-layout.json:1: unknown field Completely"},
		"label twice":         {layout(`{"BootDriveLayout": [{"MountPoint": "/", "FileSystemLabel": "x"}, {"MountPoint": "/b", "FileSystemLabel": "x"}]}`), CodeDuplicate, `storage-layout.json:1: BootDriveLayout[1].FileSystemLabel: line 1 has the label "x" already`},
		"user too large":      {layout(`{"BootDriveLayout": [{"MountPoint": "/", "RootUserId": 4294967295}]}`), CodeValue, "storage-layout.json:1: BootDriveLayout[0].RootUserId: at most 4294967294, not 4294967295"},
		"empty selector":      {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "BootDisk": {}}`), CodeValue, "storage-layout.json:1: BootDisk chooses nothing: it has none of Serial, WWN, Model, Transport, MinimumBytes, MaximumBytes, Path, Smallest, Largest, First"},
		"empty serial":        {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "DataDisks": [{"Serial": " ", "First": true}]}`), CodeValue, "storage-layout.json:1: DataDisks[0].Serial is empty"},
		"unknown selector":    {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "BootDisk": {"Seriel": "a"}}`), CodeUnknown, `storage-layout.json:1: unknown field BootDisk.Seriel: did you mean "Serial"?`},
		"two picks":           {layout("{\"BootDriveLayout\": [{\"MountPoint\": \"/\"}], \"BootDisk\": {\"First\": true,\n\"Smallest\": true}}"), CodeValue, "storage-layout.json:1: BootDisk.First: one of Smallest, Largest and First is possible"},
		"no such size":        {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "BootDisk": {"MinimumBytes": 3, "MaximumBytes": 2}}`), CodeValue, "storage-layout.json:1: BootDisk.MaximumBytes: no disk has at most 2 and at least 3 bytes"},
		"USB":                 {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "BootDisk": {"Transport": "USB"}}`), CodeValue, "storage-layout.json:1: BootDisk.Transport: disks that are connected by USB are never used"},
		"no such transport":   {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "BootDisk": {"Transport": "nvm"}}`), CodeValue, `storage-layout.json:1: BootDisk.Transport: "nvm" is not possible: have "ata", "fc", "iscsi", "mmc", "nvme", "sas", "sata", "scsi", "virtio", "xen": did you mean "nvme"?`},
		"no device node":      {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "BootDisk": {"Path": "sda"}}`), CodeValue, `storage-layout.json:1: BootDisk.Path: "sda" does not begin with /dev/`},
		"no such rule":        {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Overwrite": "never_foreign"}`), CodeValue, `storage-layout.json:1: Overwrite: "never_foreign" is not possible: have "any", "own", "never-foreign": did you mean "never-foreign"?`},
		"no such erasure":     {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Erase": "secure"}`), CodeValue, `storage-layout.json:1: Erase: "secure" is not possible: have "metadata", "discard", "crypto", "overwrite"`},
		"empty rule":          {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Erase": ""}`), CodeValue, `storage-layout.json:1: Erase: "" is not possible: have "metadata", "discard", "crypto", "overwrite"`},
		"kept twice":          {layout("{\"BootDriveLayout\": [{\"MountPoint\": \"/\"}], \"Preserve\": [\"home\",\n\"home\"]}"), CodeDuplicate, `storage-layout.json:2: Preserve[1]: "home" stands in the list already`},
		"one firmware":        {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Firmware": "uefi"}`), CodeValue, `storage-layout.json:1: Firmware: "uefi" is not possible: have "both"`},
		"plain encryption":    {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Encryption": {"RecoveryRecipients": []}}`), CodeValue, `storage-layout.json:1: Encryption needs "Encrypt": true`},
		"no such key":         {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Encrypt": true, "Encryption": {"Unlock": ["tpm"]}}`), CodeValue, `storage-layout.json:1: Encryption.Unlock[0]: "tpm" is not possible: have "keyfile", "tpm2", "passphrase": did you mean "tpm2"?`},
		"no such PCR":         {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Encrypt": true, "Encryption": {"Unlock": ["tpm2"], "PCRs": [24]}}`), CodeValue, "storage-layout.json:1: Encryption.PCRs[0]: a TPM has the PCRs 0 to 23, not 24"},
		"PCRs of nothing":     {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Encrypt": true, "Encryption": {"PCRs": [7]}}`), CodeValue, `storage-layout.json:1: Encryption: PCRs and AllowWithoutSecureBoot need "tpm2" in Unlock`},
		"no age recipient":    {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Encrypt": true, "Encryption": {"RecoveryRecipients": ["ssh-ed25519 AAAA"]}}`), CodeValue, `storage-layout.json:1: Encryption.RecoveryRecipients[0]: "ssh-ed25519 "… is not an age recipient: age-keygen(1) prints them, they begin with age1`},
		"root by key file":    {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Encrypt": true, "Encryption": {"Root": true}}`), CodeValue, `storage-layout.json:1: Encryption.Root needs "tpm2" or "passphrase" in Unlock: a key file for the root file system has no place that is encrypted itself`},
		"nobody's passphrase": {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Encrypt": true, "Encryption": {"Unlock": ["passphrase"]}}`), CodeValue, "storage-layout.json:1: Encryption: the passphrase is the machine's recovery key, and without RecoveryRecipients nobody would know it"},
		"recovery by nobody":  {layout(`{"BootDriveLayout": [{"MountPoint": "/"}], "Encrypt": true, "Encryption": {"RecoveryRequired": true}}`), CodeValue, "storage-layout.json:1: Encryption: RecoveryRequired needs RecoveryRecipients"},
		"reserved":            {layout(`{"BootDriveLayout": [{"MountPoint": "/", "ReservedBlocksPercentage": 51}]}`), CodeValue, "storage-layout.json:1: BootDriveLayout[0].ReservedBlocksPercentage: at most 50, not 51"},
		"two lines":           {file(ToolsImageFile, "a\nb\n"), CodeSyntax, "tools-imagename:2: a second line follows line 1: the file has one"},
		"site server":         {file(SiteServerFile, "site:8080"), CodeServer, `siteserver:1: "site:8080" is not a URL that begins with http:// or https:// and a host`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(test.files, DefaultPort)
			if err == nil {
				t.Fatal("accepted")
			}
			if err.Error() != test.want {
				t.Errorf("error:\n%s\nwant:\n%s", err, test.want)
			}
			if code := err.(Mistakes).Code(); code != test.code {
				t.Errorf("code %s: want %s", code, test.code)
			}
		})
	}
}

func TestServers(t *testing.T) {
	for in, want := range map[string]string{
		"images":              "images:6971",
		"10.0.2.2":            "10.0.2.2:6971",
		"10.0.2.2:1":          "10.0.2.2:1",
		"images.example.com.": "images.example.com.:6971",
		"2001:db8::1":         "[2001:db8::1]:6971",
		"[2001:db8::1]":       "[2001:db8::1]:6971",
		"[2001:db8::1]:7":     "[2001:db8::1]:7",
	} {
		if got, err := ParseServer(in, DefaultPort); err != nil || got != want {
			t.Errorf("ParseServer(%q) = %q, %v: want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":6971", "a:", "a:0", "a:070", "a:b", "http://a", "a/b", "[::1", "[a]:1", "[::1]7", "a b", "fe80::1%eth0:8"} {
		if got, err := ParseServer(in, DefaultPort); err == nil {
			t.Errorf("ParseServer(%q) = %q: want an error", in, got)
		}
	}
}

func TestImageNames(t *testing.T) {
	pin := "@sha256:" + strings.Repeat("ab", 32)
	for _, name := range []string{"a", "debian/12/2026-11-20", "hypervisor/2024-01-18:22:57:43", "a_b+c/d.e", "a" + pin} {
		if err := CheckImageName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "/a", "a/", "a//b", "..", "a/../b", ".", "ä", "a b", "a@", "a@sha256:ab", pin, "a" + strings.ToUpper(pin), strings.Repeat("a", 256)} {
		if CheckImageName(name) == nil {
			t.Errorf("%q was taken for an image name", name)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"Id", "MountPoint", "Encrypt", "VlanId"}
	for name, want := range map[string]string{"mountpiont": "MountPoint", "Encryt": "Encrypt", "OS": "", "Idd": "Id", "VlanIds": "VlanId", "Whatever": "", "ncrypt": "Encrypt"} {
		if got, _ := nearest(name, known); got != want {
			t.Errorf("nearest(%q) = %q: want %q", name, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	files := example(f)
	f.Add(files[MachineFile], files[LayoutFile], files[ImageFile], files[ImageServerFile])
	f.Add([]byte("{}"), []byte("# c\n{\"BootDriveLayout\": [{\"MountPoint\": \"/\"}]}"), []byte("a@b"), []byte("[::1]:1"))
	f.Add([]byte(`{"Error": "no"}`), []byte("[[[["), []byte("\n\n"), []byte("\xff"))
	f.Add([]byte("{\"a\":\n//x\n1}"), []byte("null"), []byte("!\na"), []byte(":"))
	f.Fuzz(func(t *testing.T, machine, layout, image, server []byte) {
		c, err := Parse(map[string][]byte{MachineFile: machine, LayoutFile: layout, ImageFile: image, ImageServerFile: server}, DefaultPort)
		if err != nil {
			for _, m := range err.(Mistakes) {
				if m.ID == "" || m.Text == "" {
					t.Errorf("mistake without code or text: %+v", m)
				}
				if m.Line > bytesLines(machine, layout, image, server) {
					t.Errorf("mistake beyond the end of every file: %v", m)
				}
			}
			return
		}
		if c.Image == "" || len(c.ImageServers) == 0 || len(c.Network.Entries) == 0 || len(c.Storage.Volumes) == 0 {
			t.Errorf("accepted, but not valid: %+v", c)
		}
	})
}

func bytesLines(files ...[]byte) int {
	most := 0
	for _, f := range files {
		most = max(most, 1+strings.Count(string(f), "\n"))
	}
	return most
}

// The port that the operator asks for counts only where the file names none.
func TestImageServerPortIsADefault(t *testing.T) {
	for text, want := range map[string]string{"images": "images:7001", "images:6999": "images:6999", "[2001:db8::1]": "[2001:db8::1]:7001",
		"# by preference\nnear far:1\n\n192.0.2.1": "near:7001 far:1 192.0.2.1:7001"} {
		files := example(t)
		files[ImageServerFile] = []byte(text + "\n")
		c, err := Parse(files, 7001)
		if err != nil || !slices.Equal(c.ImageServers, strings.Fields(want)) {
			t.Errorf("imageserver %q: got %q, %v; want %q", text, c.ImageServers, err, want)
		}
	}
}

// TestLayoutExtensions reads every field that the model does not have.
func TestLayoutExtensions(t *testing.T) {
	c, err := Parse(map[string][]byte{
		MachineFile: []byte("{}"), ImageFile: []byte("a"),
		LayoutFile: []byte(`{"BootDriveLayout": [{"MountPoint": "/"}, {"FileSystemType": "swap", "MinimumBytes": 1}, {"FileSystemType": "btrfs", "MountPoint": "/a", "Subvolumes": [{"Name": "@b", "MountPoint": "/b/"}]}], "Encrypt": true,
  "BootDisk": {"Serial": "S1", "WWN": "naa.5000", "Model": "SAMSUNG*", "Transport": "nvme", "MinimumBytes": 1, "MaximumBytes": 2, "Path": "/dev/disk/by-path/pci-*", "Smallest": true},
  "DataDisks": [{"Largest": true}, {"First": true}],
  "Overwrite": "own", "Preserve": ["home", "data-0"], "Erase": "crypto", "Mirror": true, "VolumeGroup": "vg0", "DataRAID": "raid10", "Firmware": "both",
  "Encryption": {"Root": true, "Unlock": ["tpm2", "passphrase"], "PCRs": [7, 11], "RecoveryRecipients": ["age1gdrpuawclwlpw25el7tpxvan2lz80gewj53zamcmvyevy6txvc0qhehwas"], "RecoveryRequired": true, "AllowWithoutSecureBoot": true}}`),
	}, DefaultPort)
	if err != nil {
		t.Fatal(err)
	}
	want := storage.Spec{
		Volumes: []storage.VolumeSpec{{FileSystem: "ext4", MountPoint: "/"}, {FileSystem: "swap", MinimumBytes: 1},
			{FileSystem: "btrfs", MountPoint: "/a", Subvolumes: []storage.Subvolume{{Name: "@b", MountPoint: "/b"}}}},
		Encrypt: true,
		BootDisk: &storage.Selector{Serial: "S1", WWN: "naa.5000", Model: "SAMSUNG*", Transport: "nvme", MinimumBytes: 1, MaximumBytes: 2,
			Path: "/dev/disk/by-path/pci-*", Pick: storage.Smallest},
		DataDisks: []storage.Selector{{Pick: storage.Largest}, {Pick: storage.First}},
		Overwrite: storage.OverwriteOwn,
		Preserve:  []string{"home", "data-0"},
		Erase:     storage.EraseCrypto,
		Mirror:    true, VolumeGroup: "vg0", DataRAID: storage.RAID10,
		Firmware:   storage.Both,
		Encryption: storage.Encryption{Root: true, Unlock: []storage.Unlock{"tpm2", "passphrase"}, PCRs: []uint{7, 11}, RecoveryRecipients: []string{"age1gdrpuawclwlpw25el7tpxvan2lz80gewj53zamcmvyevy6txvc0qhehwas"}, RecoveryRequired: true, AllowWithoutSecureBoot: true},
	}
	if d := cmp.Diff(want, c.Storage); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}

	c, err = Parse(map[string][]byte{
		MachineFile: []byte("{}"), ImageFile: []byte("a"),
		LayoutFile: []byte(`{"BootDriveLayout": [{"MountPoint": "/"}], "DataDisks": [], "BootDisk": null}`),
	}, DefaultPort)
	if err != nil || c.Storage.DataDisks == nil || c.Storage.BootDisk != nil {
		t.Errorf("an empty list of DataDisks became %#v, a BootDisk of null %v (%v)", c.Storage.DataDisks, c.Storage.BootDisk, err)
	}
}

// TestWipeAndRescue: neither needs an image, and a machine is not both.
func TestWipeAndRescue(t *testing.T) {
	parse := func(install string) (Config, error) {
		return Parse(map[string][]byte{MachineFile: []byte(`{"Install": ` + install + `}`)}, DefaultPort)
	}
	c, err := parse(`{"Wipe": "discard"}`)
	if err != nil || c.Install.Wipe != storage.EraseDiscard || c.Installs() {
		t.Errorf("%+v, %v", c.Install, err)
	}
	if c, err = parse(`{"Rescue": true}`); err != nil || !c.Install.Rescue || c.Installs() {
		t.Errorf("%+v, %v", c.Install, err)
	}
	for install, says := range map[string]string{
		`{}`:                                   "imagename: there is no such file",
		`{"Rescue": false}`:                    "imagename: there is no such file",
		`{"Wipe": ""}`:                         "imagename: there is no such file",
		`{"Wipe": "gently"}`:                   `Install.Wipe`,
		`{"Wipe": "overwrite","Rescue": true}`: "a machine is wiped, or it is left alone",
	} {
		if _, err := parse(install); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", install, err)
		}
	}
}
