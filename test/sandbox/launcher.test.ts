import { execFileSync, spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { removeFolder } from "../fixtures/remove-folder.js";

const NATIVE = fileURLToPath(new URL("../../native/", import.meta.url));
const programOf = (folder: string, processor: string) => join(folder, `linux-${processor}`, "copilotfleet-sandbox");

/** The compilers of Debian 13, which made the programs in the package. */
const hasCompilers = ["x86_64", "aarch64"].every((processor) => {
  try {
    return execFileSync(`${processor}-linux-gnu-gcc`, ["-dumpfullversion"], { encoding: "utf8" }).startsWith("14.2.");
  } catch {
    return false;
  }
});

it.skipIf(!hasCompilers)("the launchers in the package are what their source and native/build.sh make", () => {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-launcher-"));
  onTestFinished(() => removeFolder(folder));
  execFileSync(join(NATIVE, "build.sh"), [folder]);
  for (const processor of ["x64", "arm64"]) {
    const [built, packed] = [folder, NATIVE].map((from) => readFileSync(programOf(from, processor)));
    expect(built?.equals(packed ?? Buffer.of()), processor).toBe(true);
  }
});

it.each(["x64", "arm64"])("the launcher for %s is small and executable", (processor) => {
  const { size, mode } = statSync(programOf(NATIVE, processor));
  expect(size).toBeLessThan(8_192);
  expect(mode & 0o111).toBe(0o111);
});

it.each([
  [["--try", "--read"], /landlock \d/, 0],
  [["--nonsense", "x", "--try"], /unknown option --nonsense/, 126],
  [["--read"], /no value for --read/, 126],
  [["--read", "/"], /no program/, 126],
  [["--limit", "x=1", "--try"], /not a number: x=1/, 126],
  [["--read", "/", "--", "/nowhere"], /cannot run \/nowhere: error 2/, 126],
])("the launcher with the arguments %j says what is wrong, and runs nothing", (args, said, code) => {
  const [status, output] = launch(args);
  expect(output).toMatch(said);
  expect(status).toBe(code);
});

it("the launcher closes the caller's other descriptors", () => {
  const secret = openSync("/etc/hostname", "r");
  const run = (program: string, args: readonly string[]) =>
    spawnSync(program, args, { stdio: ["ignore", "pipe", "pipe", secret], encoding: "utf8" });
  const bare = run("/bin/sh", ["-c", "cat <&3"]);
  const launched = run(programOf(NATIVE, process.arch), ["--read", "/", "--", "/bin/sh", "-c", "cat <&3"]);
  closeSync(secret);
  expect(bare.status).toBe(0);
  expect({ failed: launched.status !== 0, stdout: launched.stdout }).toEqual({ failed: true, stdout: "" });
});

function launch(args: readonly string[]): [number | null, string] {
  try {
    return [0, execFileSync(programOf(NATIVE, process.arch), args, { encoding: "utf8", stdio: "pipe" })];
  } catch (error) {
    const { status, stderr } = error as { status: number | null; stderr: string };
    return [status, stderr];
  }
}
