import { execFileSync, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readFileSync, statSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { removeFolder } from "../fixtures/remove-folder.js";

const NATIVE = fileURLToPath(new URL("../../native/", import.meta.url));
const PROGRAMS = ["copilotfleet-sandbox", "copilotfleet-network"];
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

function launch(args: readonly string[]): [number | null, string] {
  try {
    return [0, execFileSync(programOf(NATIVE, process.arch), args, { encoding: "utf8", stdio: "pipe" })];
  } catch (error) {
    const { status, stderr } = error as { status: number | null; stderr: string };
    return [status, stderr];
  }
}
