# The program of package launcher, in GNU as. launcher.go has its bytes; a test
# assembles this file and compares.
#
# It is called as any EFI program is (UEFI 2.10, 2.3.4 and 4.1.1: rcx is the
# image's handle, rdx the system table) and uses no address of its own, so that
# it runs wherever firmware puts it. What it works on lies in the page after it.

.intel_syntax noprefix
.set boot_services, 0x60	# of the system table
.set handle_protocol, 0x98	# of the boot services
.set load_image, 0xc8
.set start_image, 0xd0
.set device_handle, 0x18	# of the loaded image
.set load_options_size, 0x30
.set load_options, 0x38
.set room, 768			# of the path, for the disk's part

	push rbx
	push rsi
	push rdi
	push r12
	push r13
	sub rsp, 0x50
	mov r12, rcx
	mov rbx, [rdx + boot_services]

	# Where was this program started from?
	lea rdx, [rip + loaded_image]
	lea r8, [rsp + 0x38]
	call [rbx + handle_protocol]
	test rax, rax
	jnz return
	mov rax, [rsp + 0x38]
	mov rcx, [rax + device_handle]
	lea rdx, [rip + device_path]
	lea r8, [rsp + 0x40]
	call [rbx + handle_protocol]
	test rax, rax
	jnz return

	# The path of the kernel: that of the partition, and the file on it.
	mov rsi, [rsp + 0x40]
	lea rdi, [rip + path]
	mov r13, rdi
node:	cmp byte ptr [rsi], 0x7f
	je file
	movzx ecx, word ptr [rsi + 2]
	lea rax, [rdi + rcx]
	sub rax, r13
	cmp rax, room
	ja long
	rep movsb
	jmp node
long:	mov rax, 0x8000000000000005	# EFI_BUFFER_TOO_SMALL
	jmp return
file:	lea rsi, [rip + file_path]
	mov ecx, [rip + file_path_size]
	rep movsb

	xor ecx, ecx
	mov rdx, r12
	mov r8, r13
	xor r9d, r9d
	mov qword ptr [rsp + 0x20], 0
	lea rax, [rsp + 0x40]
	mov [rsp + 0x28], rax
	call [rbx + load_image]
	test rax, rax
	jnz return

	# Its options.
	mov rcx, [rsp + 0x40]
	lea rdx, [rip + loaded_image]
	lea r8, [rsp + 0x38]
	call [rbx + handle_protocol]
	test rax, rax
	jnz return
	mov rax, [rsp + 0x38]
	lea rcx, [rip + options]
	mov [rax + load_options], rcx
	mov ecx, [rip + options_size]
	mov [rax + load_options_size], ecx

	mov rcx, [rsp + 0x40]
	xor edx, edx
	xor r8d, r8d
	call [rbx + start_image]

return:	add rsp, 0x50
	pop r13
	pop r12
	pop rdi
	pop rsi
	pop rbx
	ret
end:

.org 0x1000
loaded_image:	.skip 16
device_path:	.skip 16
file_path_size:	.skip 4
options_size:	.skip 4
.org 0x1040
path:		.skip 1024 + 512
file_path:	.skip 512
options:
