package config

// The raw structs mirror the files, names and all.

// rawMachineFile is config.json.
type rawMachineFile struct {
	Error    text
	Location text
	Machine  rawMachine
	Subnets  []rawSubnet
	Install  rawInstall
}

type rawEntry struct {
	position
	Hostname       text
	HostIpAddress  text
	HostMacAddress text
	SubnetId       text
	VlanTrunk      boolean
}

type rawMachine struct {
	position
	ArchitectureType        text
	MemoryInMiB             number
	NumCPUs                 number
	TotalVolumeBytes        number
	GatewaySubnetId         text
	IPMI                    rawEntry // for the fleet's programs
	Location                text
	Hostname                text
	HostIpAddress           text
	HostMacAddress          text
	SubnetId                text
	VlanTrunk               boolean
	OwnerGroups             []text // for the fleet's programs
	OwnerUsers              []text // for the fleet's programs
	SecondaryNetworkEntries []rawEntry
	Tags                    map[string]text
}

type rawSubnet struct {
	position
	Id                text
	IpGateway         text
	IpMask            text
	DomainName        text
	DomainNameServers []text
	DisableMetadata   boolean // for the fleet's programs
	Manage            boolean
	VlanId            number
	AllowedGroups     []text // for the fleet's programs
	AllowedUsers      []text // for the fleet's programs
	FirstDynamicIP    text   // for the fleet's programs
	LastDynamicIP     text   // for the fleet's programs
	Tags              map[string]text
}

type rawInstall struct {
	position
	KernelOptions           text
	LowMemory               boolean
	NetworkRenderer         text
	ProveNetwork            boolean
	RequireApproval         boolean
	Secrets                 []text
	Rescue                  boolean
	Steps                   []rawStep
	WaitAfterFailureSeconds number
	Wipe                    text

	FirstBoot unsupported
}

type rawStep struct {
	position
	Programme      text
	Before         text
	After          text
	In             text
	TimeoutSeconds number
	OnFailure      text
}

// rawLayoutFile is storage-layout.json.
type rawLayoutFile struct {
	position
	BootDriveLayout          []rawVolume
	ExtraMountPointsBasename text
	Encrypt                  boolean
	UseKexec                 boolean
	RequireKexec             boolean

	BootDisk  *rawSelector
	DataDisks []rawSelector
	Overwrite text
	Preserve  []text
	Erase     text
	Mirror    boolean

	VolumeGroup text
	DataRAID    text

	Firmware   text
	Encryption rawEncryption
}

type rawSelector struct {
	position
	Serial       text
	WWN          text
	Model        text
	Transport    text
	MinimumBytes number
	MaximumBytes number
	Path         text
	Smallest     boolean
	Largest      boolean
	First        boolean
}

type rawEncryption struct {
	position
	Root                   boolean
	Unlock                 []text
	PCRs                   []number
	RecoveryRecipients     []text
	RecoveryRequired       boolean
	AllowWithoutSecureBoot boolean
}

type rawVolume struct {
	position
	FileSystemType           text
	FileSystemLabel          text
	MountPoint               text
	MinimumBytes             number
	MinimumFreeBytes         number
	BytesPerInode            number
	ReservedBlocksPercentage number
	RootUserId               number
	RootGroupId              number
	Subvolumes               []rawSubvolume
}

type rawSubvolume struct {
	position
	Name       text
	MountPoint text
}
