import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** A copy of the installed command without code cache, as on a version of Node.js that the build did not use. */
function installation() {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-installed-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  for (const name of ["bin", "dist", "package.json", "oclif.manifest.json"])
    cpSync(join(ROOT, name), join(folder, name), { recursive: true });
  symlinkSync(join(ROOT, "node_modules"), join(folder, "node_modules"));
  const caches = () => readdirSync(join(folder, "dist")).filter((name) => name.includes(".cache"));
  for (const name of caches()) rmSync(join(folder, "dist", name));
  const env = { ...process.env, COPILOTFLEET_HOME: join(folder, "state"), NODE_OPTIONS: "" };
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [join(folder, "bin", "run.js"), ...args], { env, encoding: "utf8" });
  return { dist: join(folder, "dist"), caches, run };
}

const CACHE = expect.stringMatching(new RegExp(`^cli\\.cjs\\.[0-9a-f]{8}-${process.version}-${process.arch}\\.cache$`));
const NO_SERVERS = { stdout: expect.stringMatching(/^No servers\./), stderr: "", status: 0 };

it("a command writes a code cache for a Node.js version that has none, but --version and --help write none", () => {
  const { dist, caches, run } = installation();
  expect(run("--version")).toMatchObject({ stderr: "", status: 0 });
  expect(run("ps", "--help")).toMatchObject({ stderr: "", status: 0 });
  expect(caches()).toEqual([]);
  expect(run("ps")).toMatchObject(NO_SERVERS);
  expect(caches()).toEqual([CACHE]);
  const loaded = `
    import vm from "node:vm";
    const { Script } = vm;
    vm.Script = class extends Script {
      constructor(...args) {
        super(...args);
        process.stdout.write(String(this.cachedDataRejected));
      }
    };
    await import(process.argv[1]);`;
  const args = ["--input-type=module", "-e", loaded, join(dist, "cli.js")];
  expect(spawnSync(process.execPath, args, { encoding: "utf8" })).toMatchObject({ stdout: "false", stderr: "" });
});

it("a command runs and prints no warning when its code cache is damaged", () => {
  const { dist, caches, run } = installation();
  expect(run("ps")).toMatchObject(NO_SERVERS);
  const [cache = ""] = caches();
  writeFileSync(join(dist, cache), "damaged");
  expect(run("ps")).toMatchObject(NO_SERVERS);
});
