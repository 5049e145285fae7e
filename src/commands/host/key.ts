import { FleetCommand } from "../../cli/base-command.js";
import { type HostKeyResult, showHostKey } from "../../fleet/keys/host-key.js";

export default class HostKey extends FleetCommand {
  static override summary = "Print this host's name and public key, for host.peers on the other hosts.";
  static override description = "Makes the key in the state folder if there is none. The private key is never printed.";
  static override examples = ["<%= config.bin %> host key", "<%= config.bin %> host key --json"];

  async run(): Promise<HostKeyResult> {
    await this.parse(HostKey);
    const result = showHostKey({ env: process.env, cwd: process.cwd(), ...this.configSource });
    this.log(`${result.host}=${result.key}`);
    return result;
  }
}
