import type { IHorizontalPodAutoscaler } from "kubernetes-models/autoscaling/v2/HorizontalPodAutoscaler";
import type { IIoK8sApiAutoscalingV2HPAScalingRules } from "kubernetes-models/autoscaling/v2/HPAScalingRules";
import { metadata, type Plan } from "./options.js";

/** The metric from `src/serve/report/metrics.ts`. A test compares the names. */
const ACTIVE_SESSIONS = "copilotfleet_sessions_active";
/** The fraction of the planned sessions at which another host is started, before the existing hosts are full. */
const FILL = 0.8;

/** Removes one host at a time, with long pauses, because a host first waits for its running turns. */
const SLOWLY: IIoK8sApiAutoscalingV2HPAScalingRules = {
  stabilizationWindowSeconds: 1800,
  policies: [{ type: "Pods", value: 1, periodSeconds: 600 }],
};

export function autoscaler(plan: Plan): IHorizontalPodAutoscaler {
  const { replicas, maxReplicas, storage, capacity } = plan.deployment;
  return {
    apiVersion: "autoscaling/v2",
    kind: "HorizontalPodAutoscaler",
    metadata: metadata(plan, plan.names.main),
    spec: {
      scaleTargetRef: { apiVersion: "apps/v1", kind: "StatefulSet", name: plan.names.main },
      minReplicas: replicas,
      maxReplicas,
      metrics: [
        {
          type: "Pods",
          pods: {
            metric: { name: ACTIVE_SESSIONS },
            target: { type: "AverageValue", averageValue: String(Math.max(1, Math.floor(capacity.sessions * FILL))) },
          },
        },
      ],
      behavior: {
        scaleUp: { stabilizationWindowSeconds: 60, policies: [{ type: "Pods", value: 2, periodSeconds: 60 }] },
        // With local storage, other hosts cannot reach the sessions of a host that ends.
        scaleDown: storage === "local" ? { selectPolicy: "Disabled" } : SLOWLY,
      },
    },
  };
}
