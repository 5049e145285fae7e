import { execFileSync, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chownSync, closeSync, copyFileSync, mkdtempSync, openSync, readFileSync, statSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { removeFolder } from "../fixtures/remove-folder.js";

const NATIVE = fileURLToPath(new URL("../../native/", import.meta.url));
const PROGRAMS = ["copilotfleet-sandbox", "copilotfleet-network", "copilotfleet-nodelay.so"];
const programOf = (folder: string, processor: string, program = "copilotfleet-sandbox") =>
  join(folder, `linux-${processor}`, program);

/** Whether this machine has the compilers of Debian 13, which built the programs in the package. */
const hasCompilers = ["x86_64", "aarch64"].every((processor) => {
  try {
    return execFileSync(`${processor}-linux-gnu-gcc-14`, ["-dumpfullversion"], { encoding: "utf8" }).startsWith(
      "14.2.",
    );
  } catch {
    return false;
  }
});

it.skipIf(!hasCompilers)("the programs in the package are identical to what native/build.sh makes from source", () => {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-launcher-"));
  onTestFinished(() => removeFolder(folder));
  execFileSync(join(NATIVE, "build.sh"), [folder]);
  for (const program of PROGRAMS) {
    for (const processor of ["x64", "arm64"]) {
      const [built, packed] = [folder, NATIVE].map((from) => readFileSync(programOf(from, processor, program)));
      expect(built?.equals(packed ?? Buffer.of()), `${program} for ${processor}`).toBe(true);
    }
  }
});

it.each(["x64", "arm64"])("the programs for %s are small and executable", (processor) => {
  for (const program of PROGRAMS) {
    const { size, mode } = statSync(programOf(NATIVE, processor, program));
    expect(size, program).toBeLessThan(16_384);
    expect(mode & 0o111, program).toBe(0o111);
  }
});

it.each([
  [["--try", "--read"], /landlock \d/, 0],
  [["--nonsense", "x", "--try"], /unknown option --nonsense/, 126],
  [["--read"], /no value for --read/, 126],
  [["--read", "/"], /no program/, 126],
  [["--limit", "x=1", "--try"], /not a number: x=1/, 126],
  [["--allow", "all", "--try"], /unknown option --allow/, 126],
  [["--read", "/", "--", "/nowhere"], /cannot run \/nowhere: error 2/, 126],
])("the launcher with the arguments %j prints the right message, and runs no program", (args, said, code) => {
  const [status, output] = launch(args);
  expect(output).toMatch(said);
  expect(status).toBe(code);
});

it("the launcher does not pass the caller's other file descriptors on to the program", () => {
  const secret = openSync("/etc/hostname", "r");
  const run = (program: string, args: readonly string[]) =>
    spawnSync(program, args, { stdio: ["ignore", "pipe", "pipe", secret], encoding: "utf8" });
  const bare = run("/bin/sh", ["-c", "cat <&3"]);
  const launched = run(programOf(NATIVE, process.arch), ["--read", "/", "--", "/bin/sh", "-c", "cat <&3"]);
  closeSync(secret);
  expect(bare.status).toBe(0);
  expect({ failed: launched.status !== 0, stdout: launched.stdout }).toEqual({ failed: true, stdout: "" });
});

it("the launcher sets a resource limit", () => {
  const [, output] = launch(["--read", "/", "--limit", "7=64", "--", "/bin/sh", "-c", "ulimit -n; ulimit -Hn"]);
  expect(output).toBe("64\n64\n");
});

it("the launcher lets the program connect to and listen on only the listed ports", async () => {
  const listening = createServer().listen(0, "127.0.0.1");
  await once(listening, "listening");
  const { port } = listening.address() as AddressInfo;
  const connect = ["--", "/bin/bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/${port} && echo connected`];
  expect(launch(["--read", "/", "--connect", String(port), ...connect])).toEqual([0, "connected\n"]);
  const [status, output] = launch(["--read", "/", "--connect", "1", ...connect]);
  expect(status).not.toBe(0);
  expect(output).toContain("Permission denied");
  listening.close();
  const listen = (at: number) => [
    "--",
    process.execPath,
    "-e",
    `require("net").createServer().listen(${at}, "127.0.0.1", () => process.exit(0)).on("error", (error) => { console.error(error.code); process.exit(1); })`,
  ];
  expect(launch(["--read", "/", "--bind", String(port), ...listen(port)])[0]).toBe(0);
  expect(launch(["--read", "/", "--bind", "1", ...listen(port)])).toEqual([1, "EACCES\n"]);
});

/** Lines of Perl, each true if a system call succeeds. `$file` is a file of the account, and `$new` is a new path. */
const CALLS = {
  chmod: "chmod 0750, $file",
  "chmod u+s": "chmod 04755, $file",
  "chmod g+s": "chmod 02755, $file",
  "fchmod u+s": "open($f, '<', $file) && chmod 04755, $f",
  "fchmodat2 u+s": "syscall(452, -100, $file, 04755, 0) == 0",
  open: "sysopen($f, $new, 0102, 0755)",
  "open u+s": "sysopen($f, $new, 0102, 04755)",
  "open g+s": "sysopen($f, $new, 0102, 02755)",
  "open u+s without a name": "sysopen($f, '.', 020200002, 04755)",
  "open an existing file with a mode": "sysopen($f, $file, 0, 04755)",
  "openat2 u+s": "syscall(437, -100, $new, $how, 24) >= 0",
  "creat u+s": "syscall(85, $new, 04755) >= 0",
  "mknod u+s": "syscall(133, $new, 0104755, 0) == 0",
  "mknodat u+s": "syscall(259, -100, $new, 0104755, 0) == 0",
  chown: "chown $<, -1, $file",
  fchown: "open($f, '<', $file) && chown $<, -1, $f",
  lchown: "syscall(94, $file, $<, -1) == 0",
  fchownat: "syscall(260, -100, $file, $<, -1, 0) == 0",
  setxattr: "syscall(188, $file, $name, $text, 1, 0) == 0",
  lremovexattr: "syscall(198, $file, $name) == 0",
  "Unix socket": "socket($f, 1, 1, 0)",
  "pair of streams": "socketpair($f, $g, 1, 1, 0)",
  "pair of sequences of packets": "socketpair($f, $g, 1, 5, 0)",
  "pair that sends datagrams": "socketpair($f, $g, 1, 2, 0)",
  "raw pair, which the kernel turns into datagrams": "socketpair($f, $g, 1, 3, 0)",
  "getrlimit of file locks": "syscall(302, 0, 10, 0, $limit) == 0",
  "prlimit64 of file locks": "syscall(302, 0, 10, $limit, 0) == 0",
  "setrlimit of file locks": "syscall(160, 10, $limit) == 0",
} as const;
const SET_USER = Object.keys(CALLS).filter((name) => name.includes("u+s"));
const SET_GROUP = ["chmod g+s", "open g+s"];
const OWNERS = ["chown", "fchown", "lchown", "fchownat", "setxattr", "lremovexattr"];
const SOCKETS = ["Unix socket", "pair that sends datagrams", "raw pair, which the kernel turns into datagrams"];
const MARK = ["prlimit64 of file locks", "setrlimit of file locks"];
const BOTH = ["--allow", "owners", "--allow", "sockets"];

it.skipIf(process.getuid?.() !== 0 || process.arch !== "x64").each([
  { as: "root", allowed: [], refused: [...SET_USER, ...SET_GROUP, ...OWNERS, ...SOCKETS, ...MARK] },
  { as: "an ordinary user", allowed: [], refused: [...SET_USER, ...SET_GROUP, ...OWNERS, ...SOCKETS, ...MARK] },
  { as: "root", allowed: BOTH, refused: [...SET_USER, ...SET_GROUP, ...MARK] },
  { as: "an ordinary user", allowed: BOTH, refused: [...SET_USER, ...MARK] },
])("with the arguments $allowed, the launcher refuses the right system calls to $as", ({ as, allowed, refused }) => {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-launcher-"));
  onTestFinished(() => removeFolder(folder));
  const [program, uid] = [join(folder, "launcher"), as === "root" ? 0 : 40_000];
  copyFileSync(programOf(NATIVE, process.arch), program);
  chownSync(folder, uid, uid);
  const lines = Object.entries(CALLS).map(
    ([name, call]) => `unlink $new; print "${name}\\n" if (${call.replaceAll("'", '"')});`,
  );
  const script = `($file, $new, $name, $text) = ("file", "new", "user.a", "b"); $how = pack("Q3", 0102, 04755, 0); $limit = pack("Q2", 5, 5); open($f, ">", $file); ${lines.join("\n")}`;
  const run = (command: readonly string[]) =>
    execFileSync("setpriv", ["--reuid", `${uid}`, "--regid", `${uid}`, "--clear-groups", ...command], {
      cwd: folder,
      encoding: "utf8",
    })
      .trim()
      .split("\n");
  const perl = ["/usr/bin/perl", "-e", script];
  expect(run(perl), "without the launcher").toEqual(Object.keys(CALLS));
  const launched = run([program, "--write", "/", ...allowed, "--", ...perl]);
  expect(launched).toEqual(Object.keys(CALLS).filter((name) => !refused.includes(name)));
});

function launch(args: readonly string[]): [number | null, string] {
  try {
    return [0, execFileSync(programOf(NATIVE, process.arch), args, { encoding: "utf8", stdio: "pipe" })];
  } catch (error) {
    const { status, stderr } = error as { status: number | null; stderr: string };
    return [status, stderr];
  }
}
