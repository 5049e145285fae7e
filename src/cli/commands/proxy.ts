import { Flags } from "@oclif/core";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../base-command.js";
import { doorFlags, tokenOfDoor } from "../flags/door.js";
import { given, usage } from "../flags/flags.js";

interface ProxyView {
  url: string;
  to: string;
  /** The token that clients show to the proxy; null if they show their own tokens for the front door. */
  token: string | null;
}

export default class OpenProxy extends FleetCommand {
  static override summary = "Open a loopback address for SDKs, and pass their connections on to a front door with TLS.";
  static override description =
    "Runs until it is interrupted. Without a token, clients show their own tokens for the front door. With --token-env or " +
    "--token-file, the proxy shows that token, and clients show the token that the proxy prints. It is valid only for this " +
    "proxy, and keeps other users of this machine out.";
  static override examples = [
    "<%= config.bin %> proxy --to fleet.example:4300",
    "<%= config.bin %> proxy --to fleet.example:4300 --ca /etc/fleet/ca.crt --token-env FLEET_TOKEN",
  ];
  // This command reads no configuration, so it does not take `--config`.
  static override baseFlags = FLAGS_WITHOUT_CONFIG;
  static override flags = {
    ...doorFlags,
    listen: Flags.string({
      description: "loopback address for the SDKs (default: any free port of 127.0.0.1)",
      helpValue: "HOST:PORT",
    }),
  };

  #isPrinted = false;

  async run(): Promise<ProxyView> {
    const { flags } = await this.parse(OpenProxy);
    const { to, listen, ca, cert, key } = flags;
    if (to === undefined) throw usage("--to is missing.", ["For example, write --to fleet.example:4300."]);
    const token = await tokenOfDoor(flags);
    const signal = this.interruptSignal();
    const { openProxy } = await import("../../identity/tls/proxy.js");
    await using proxy = await openProxy({
      to,
      ...given({ listen, ca, cert, key, token }),
      onEvent: ({ event, detail }) => {
        if (detail !== undefined) process.stderr.write(`${event}: ${detail}\n`);
      },
    });
    const view = { url: proxy.url, to: proxy.to, token: proxy.token };
    if (this.jsonEnabled()) this.logJson(view);
    this.log(`Listening on ${view.url} for ${view.to}.`);
    if (view.token !== null) this.log(`Clients connect with this token: ${view.token}`);
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    return view;
  }

  /** Prints the `--json` output only once, when the proxy begins to listen. oclif would print it again at the end. */
  protected override logJson(json: unknown): void {
    if (this.#isPrinted) return;
    this.#isPrinted = true;
    super.logJson(json);
  }
}
