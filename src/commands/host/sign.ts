import { Args, Flags } from "@oclif/core";
import { FleetCommand } from "../../cli/base-command.js";
import { type HostCertificate, signHostKey } from "../../fleet/keys/host-key.js";

export default class HostSign extends FleetCommand {
  static override summary = "Sign the public key of a host with the fleet's private key.";
  static override description =
    "Prints the certificate. Write it into the file host-certificate in the state folder of that host. The hosts then accept " +
    "its key if their host.ca names the fleet's public key.";
  static override examples = ["<%= config.bin %> host sign host-2=KEY --ca-key fleet-ca.pem"];
  static override args = {
    key: Args.string({ description: "NAME=KEY, as host key prints it", required: true }),
  };
  static override flags = {
    "ca-key": Flags.string({ description: "PEM file with the fleet's private key", helpValue: "FILE", required: true }),
  };

  async run(): Promise<HostCertificate> {
    const { args, flags } = await this.parse(HostSign);
    const result = signHostKey(args.key, flags["ca-key"]);
    this.log(result.certificate);
    return result;
  }
}
