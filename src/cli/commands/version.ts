import { printable } from "../../base/values/text.js";
import { findVersions, type Versions } from "../../fleet/versions.js";
import { FleetCommand } from "../base-command.js";

export default class Version extends FleetCommand {
  static override summary = "Show the versions of copilotfleet, Node.js, the SDK, the runtime and serve.";
  static override description =
    "Starts the runtime once in a temporary folder to ask for its version. copilotfleet --version prints only its own.";
  static override examples = ["<%= config.bin %> version", "<%= config.bin %> version --json"];

  async run(): Promise<Versions> {
    await this.parse(Version);
    const signal = this.interruptSignal({ cleansUp: true });
    using _ = this.progress("Asking the runtime for its version");
    const options = { env: process.env, cwd: process.cwd(), ...this.configSource, signal };
    const { versions, problems } = await findVersions(options);
    this.log(renderVersions(versions));
    for (const { message, code } of problems) process.stderr.write(`Warning: ${message} [${code}]\n`);
    return versions;
  }
}

function renderVersions({ copilotfleet, node, sdk, runtime, platform, serve }: Versions): string {
  const { version, path, protocol } = runtime;
  const spoken = protocol === null ? "" : `, protocol ${protocol}`;
  const rows = {
    copilotfleet,
    node,
    sdk: sdk ?? "not installed",
    runtime: path === null ? "not found" : `${version ?? "unknown"}${spoken} (${printable(path)})`,
    serve: serve === null || serve === copilotfleet ? serve : `${serve} (restart it to run ${copilotfleet})`,
    platform,
  };
  return Object.entries(rows)
    .map(([name, text]) => `${name.padEnd(14)}${text ?? "not running"}`)
    .join("\n");
}
