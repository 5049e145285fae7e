import { type LoadOptions, loadConfig } from "../config/load.js";
import type { RenderedCompose } from "../deploy/compose.js";
import type { DeployOptions } from "../deploy/deployment.js";
import type { KubernetesOptions } from "../deploy/kubernetes/options.js";
import type { RenderedKubernetes } from "../deploy/kubernetes/render.js";
import type { RenderedSystemd, SystemdOptions } from "../deploy/systemd.js";

/** Which configuration file `--config` names. */
type ConfigSource = Pick<LoadOptions, "configFile">;

// The renderers, and the libraries that they need, are loaded when one of these is called: no other command pays for them.

export async function deployKubernetes(options: KubernetesOptions, source: ConfigSource): Promise<RenderedKubernetes> {
  const { renderKubernetes } = await import("../deploy/kubernetes/render.js");
  return renderKubernetes(loadConfig(source), options);
}

export async function deployCompose(options: DeployOptions, source: ConfigSource): Promise<RenderedCompose> {
  const { renderCompose } = await import("../deploy/compose.js");
  return renderCompose(loadConfig(source), options);
}

/** @param output Below which folder the files are written; none: they are only rendered. */
export async function deploySystemd(
  options: SystemdOptions,
  output: string | undefined,
  source: ConfigSource,
): Promise<RenderedSystemd & { written: string[] }> {
  const { renderSystemd } = await import("../deploy/systemd.js");
  const rendered = renderSystemd(loadConfig(source), options);
  if (output === undefined) return { ...rendered, written: [] };
  const { writeFiles } = await import("../deploy/write.js");
  return { ...rendered, written: await writeFiles(output, rendered.files) };
}
