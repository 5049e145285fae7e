import { FleetCommand } from "../../cli/base-command.js";
import { kubernetesFlags } from "../../cli/flags/deploy.js";
import { deployKubernetes } from "../../cli/run/deploy.js";

export default class DeployKubernetes extends FleetCommand {
  static override summary = "Print Kubernetes manifests for this configuration.";
  static override description =
    "Applies nothing: pipe the output to kubectl apply. The manifests contain no secrets. Keys, tokens and a Redis URL " +
    "with a password are references to Secrets, which comments at the top name. More than one host needs a Redis store.";
  static override examples = [
    "<%= config.bin %> deploy kubernetes --image registry.example/copilotfleet:1 | kubectl apply -f -",
    "<%= config.bin %> deploy kubernetes --replicas 3 --redis-secret fleet-redis --storage shared --storage-class nfs",
  ];
  static override flags = kubernetesFlags;

  async run(): Promise<{ manifests: object[]; notices: string[] }> {
    const { flags } = await this.parse(DeployKubernetes);
    const { manifests, notices, yaml } = await deployKubernetes(
      {
        name: flags.name,
        image: flags.image ?? `copilotfleet:${this.config.version}`,
        replicas: flags.replicas,
        maxReplicas: flags["max-replicas"],
        storage: flags.storage,
        servers: flags.servers,
        sessions: flags.sessions,
        secretStore: flags["redis-secret"] !== undefined,
        namespace: flags.namespace,
        secret: flags.secret,
        redisSecret: flags["redis-secret"],
        storageSize: flags["storage-size"],
        storageClass: flags["storage-class"],
        monitoringNamespace: flags["monitoring-namespace"],
        clientNamespaces: flags["client-namespace"],
        egressPorts: flags["egress-port"] ?? [],
      },
      this.configSource,
    );
    this.log(yaml.trimEnd());
    return { manifests, notices };
  }
}
