import { loadConfig } from "../../../config/load/load.js";
import { FleetCommand } from "../../base-command.js";
import { kubernetesFlags } from "../../flags/deploy.js";

export default class DeployKubernetes extends FleetCommand {
  static override summary = "Print Kubernetes manifests for this configuration.";
  static override description =
    "Applies nothing: pipe the output to kubectl apply. The manifests contain no secrets. Keys, tokens and a Redis URL " +
    "with a password are references to Secrets, which comments at the top name. More than one host needs a Redis store.";
  static override examples = [
    "<%= config.bin %> deploy kubernetes --image registry.example/copilotfleet:1 | kubectl apply -f -",
    "COPILOTFLEET_STORE=rediss://redis.example:6379/0 <%= config.bin %> deploy kubernetes --replicas 3 --redis-secret fleet-redis --storage shared --storage-class nfs",
    "<%= config.bin %> deploy kubernetes --ingress-host fleet.example --ingress-class nginx",
  ];
  static override flags = kubernetesFlags;

  async run(): Promise<{ manifests: object[]; notices: string[] }> {
    const { flags } = await this.parse(DeployKubernetes);
    // Import the renderer only here, so that other commands start without its libraries.
    const { renderKubernetes } = await import("../../../deploy/kubernetes.js");
    const { manifests, notices, yaml } = renderKubernetes(loadConfig(this.configSource), {
      ...flags,
      image: flags.image ?? `copilotfleet:${this.config.version}`,
    });
    this.log(yaml.trimEnd());
    return { manifests, notices };
  }
}
