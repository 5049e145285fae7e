import { mkdirSync, mkdtempSync, realpathSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { FleetError } from "../../src/base/errors.js";
import { type LoadedConfig, type LoadOptions, loadConfig } from "../../src/config/load/load.js";

/** A temporary folder to load a configuration in. It has a home, and a working folder three levels below a project. */
export class Folder implements AsyncDisposable {
  readonly root = realpathSync(mkdtempSync(join(tmpdir(), "fleet-config-")));
  readonly home = join(this.root, "home");
  readonly project = join(this.root, "project");
  readonly cwd = join(this.project, "a", "b", "c");
  readonly projectFile = join(this.project, ".copilotfleet.json");
  readonly userFile = join(this.home, "config", "copilotfleet", "config.json");

  constructor() {
    mkdirSync(this.cwd, { recursive: true });
    mkdirSync(this.home);
  }

  /** Writes a file. Content that is not a string is written as JSON. */
  write(path: string, content: unknown): void {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, typeof content === "string" ? content : JSON.stringify(content), { mode: 0o644 });
  }

  load(options: LoadOptions = {}): LoadedConfig {
    const env = { XDG_CONFIG_HOME: join(this.home, "config"), ...options.env };
    return loadConfig({ cwd: this.cwd, home: this.home, ...options, env });
  }

  /** Loads the configuration, which must be refused, and returns the error. */
  refusal(options: LoadOptions = {}): FleetError {
    return refusalOf(() => this.load(options));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.root, { recursive: true, force: true });
  }
}

/** A nested object with one value, at a dotted key. */
export function at(name: string, value: unknown): Record<string, unknown> {
  return name.split(".").reduceRight<unknown>((inner, part) => ({ [part]: inner }), value) as Record<string, unknown>;
}

/** Returns the FleetError that `act` throws. Any other outcome fails the test. */
export function refusalOf(act: () => unknown): FleetError {
  let result: unknown;
  try {
    result = act();
  } catch (error) {
    if (error instanceof FleetError) return error;
    throw error;
  }
  throw new Error(`nothing was refused: ${JSON.stringify(result)}`);
}
